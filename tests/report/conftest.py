"""A small run's folder, as `icckd run` leaves it, with random numbers."""

import json
from dataclasses import asdict

import pytest
import torch
import yaml
from safetensors.torch import save_file

from icckd.report.figures import line_chart
from icckd.settings import Settings

CLASSES = ["zero", "one", "two", "three"]
MEASURES = (
    "test_accuracy",
    "intra_class_distance",
    "inter_class_distance",
    "distance_ratio",
    "soft_label_entropy",
    "expected_calibration_error",
)


class Run:
    """The folder `path` and ways to change it."""

    def __init__(self, path, classes=None, seed=0):
        self.path = path
        self.classes = CLASSES if classes is None else classes
        self.generator = torch.Generator().manual_seed(seed)
        path.mkdir(parents=True)
        self.settings = asdict(Settings())
        self.settings["teacher"]["loss"]["weight"] = 0.05
        self.summary = {stage: self._summary(stage) for stage in ("teacher", "student")}
        self.summary["student"]["settings"] = {
            "cross_entropy_weight": 0.1,
            "kd": {"weight": 0.9, "temperature": 4.0, "standardize": False, "warmup_epochs": 0},
            "backend": "auto",
        }
        self.summary["data"] = {
            "train_images": 1438,
            "mean": [0.25],
            "std": [0.125],
            "augmentation": {"crop_padding": 3, "flip": False, "rotation": 0.0, "resized_crop": None},
        }
        self.summary["environment"] = {"torch": "2.13.0", "device": "cpu: a processor", "commit": None}
        self.metrics = [self._record(stage, epoch) for stage in ("teacher", "student") for epoch in (1, 2, 3)]
        self.model = {"arch": "convnet-large", "classes": self.classes, "channels": 1, "parameters": 40_000}
        self.examples = self._examples()
        self.write()

    def write(self):
        (self.path / "config.yaml").write_text(yaml.safe_dump(self.settings, sort_keys=False))
        self.write_json("summary.json", self.summary)
        (self.path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in self.metrics))
        for stage in ("teacher", "student"):
            (self.path / stage).mkdir(exist_ok=True)
        self.write_json("teacher/model.json", self.model)
        self.write_json("student/model.json", {**self.model, "arch": "convnet-small", "parameters": 5_000})
        save_file(self.examples, self.path / "teacher" / "examples.safetensors")

    def write_json(self, name, value):
        (self.path / name).write_text(json.dumps(value))

    def random(self):
        return torch.rand((), generator=self.generator).item()

    def _summary(self, stage):
        numbers = {name: self.random() for name in MEASURES}
        numbers["per_class_accuracy"] = [self.random() for _ in self.classes]
        return {**numbers, "seconds": 75.0, **({"method": "kd"} if stage == "student" else {})}

    def _record(self, stage, epoch):
        own = ("intra_class", "active_fraction", "mean_margin") if stage == "teacher" else ("kd",)
        losses = {f"train_{name}": self.random() for name in ("loss", "cross_entropy", *own)}
        measures = {name: self.random() for name in MEASURES}
        return {"stage": stage, "epoch": epoch, "step": 10 * epoch, "skipped_steps": 0, **losses, **measures}

    def _examples(self):
        return {
            "images": torch.randint(256, (3, 1, 8, 8), generator=self.generator).to(torch.uint8),
            "labels": torch.randint(len(self.classes), (3,), generator=self.generator),
            "logits": 4 * torch.randn(3, len(self.classes), generator=self.generator),
            "indices": torch.tensor([5, 17, 40]),
        }


_DRAWN: dict[str, str] = {}


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch):
    """No chart is drawn twice: that is most of a page's time, and the runs of most tests have the same numbers."""

    def drawn(chart):
        key = repr(chart)
        if key not in _DRAWN:
            _DRAWN[key] = line_chart(chart)
        return _DRAWN[key]

    monkeypatch.setattr("icckd.report.shell.line_chart", drawn)


@pytest.fixture
def drawn_anew(drawn_once, monkeypatch):
    """But for tests of drawing itself: all charts are."""
    monkeypatch.setattr("icckd.report.shell.line_chart", line_chart)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")


@pytest.fixture
def make_run(tmp_path):
    """Makes further runs: make_run(name, classes, seed)."""
    return lambda name, **choices: Run(tmp_path / name, **choices)
