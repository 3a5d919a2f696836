"""A folder of runs, as `icckd compare` leaves it, with random numbers."""

import json

import numpy as np
import pytest

from icckd.report.comparison import write_comparison
from icckd.settings import Settings
from icckd.settings.comparison import Comparison

CLASSES = [f"class-{index:02d}" for index in range(20)]
ACCURACY = "student.test_accuracy"
TEACHER = "teacher.test_accuracy"


def values_of(runs, variant, metric, seeds=None):
    stage, name = metric.split(".")
    return [runs.summaries[variant, seed][stage][name] for seed in seeds or runs.comparison.seeds]


def change(runs, variant, metric, values):
    stage, name = metric.split(".")
    for seed, value in zip(runs.comparison.seeds, values, strict=True):
        runs.summaries[variant, seed][stage][name] = value


class Runs:
    """The folder `path`, its comparison, the summaries by variant and seed, and ways to change them.

    `epochs`: how many of them metrics.jsonl has; figures of learning curves take most of a page's time.
    """

    def __init__(self, path, seeds=(0, 1, 2, 5), variants=("plain", "intra", "strong"), epochs=0, **definition):
        self.path, self.epochs = path, epochs
        self.rng = np.random.default_rng(len(seeds))
        settings = {name: Settings() for name in variants}
        for place, of in enumerate(settings.values()):
            of.teacher.loss.weight = 0.02 * place
        self.comparison = Comparison(settings, variants[0], list(seeds), **definition)
        self.summaries = {(name, seed): self._summary(place) for place, name in enumerate(variants) for seed in seeds}
        self.write()

    def write(self):
        for key in self.summaries:
            self.write_run(*key)

    def write_run(self, variant, seed):
        run = self.run(variant, seed)
        (run / "student").mkdir(parents=True, exist_ok=True)
        summary = self.summaries[variant, seed]
        (run / "summary.json").write_text(json.dumps(summary))
        records = [
            {"stage": stage, "epoch": epoch, "test_accuracy": self.rng.random(), "distance_ratio": self.rng.random()}
            for stage in ("teacher", "student")
            for epoch in range(1, self.epochs + 1)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (run / "student" / "model.json").write_text(json.dumps({"classes": CLASSES}))
        (run / "report.html").write_text("")

    def run(self, variant, seed):
        return self.path / "runs" / variant / str(seed)

    def pages(self):
        """The texts of compare.html and compare.md, and what compare.json holds."""
        write_comparison(self.path, self.comparison)
        found = json.loads((self.path / "compare.json").read_text())
        return (self.path / "compare.html").read_text(), (self.path / "compare.md").read_text(), found

    def _summary(self, place):
        stages = {
            stage: {
                "test_accuracy": 0.7 + 0.01 * place + 0.002 * self.rng.standard_normal(),
                "distance_ratio": self.rng.random(),
                "per_class_accuracy": self.rng.random(len(CLASSES)).tolist(),
                "best_test_accuracy": 0.9,
            }
            for stage in ("teacher", "student")
        }
        return {**stages, "environment": {"torch": "2.13.0", "device": "cpu: a processor", "date": str(place)}}


@pytest.fixture
def make_runs(tmp_path):
    """Makes folders of runs: make_runs(name, seeds, variants, epochs, what else a Comparison has)."""
    return lambda name="runs", **choices: Runs(tmp_path / name, **choices)


@pytest.fixture
def runs(make_runs):
    return make_runs()
