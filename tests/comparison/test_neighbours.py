"""The comparisons of configs/neighbours/ answer what they ask: miniatures, and whole ones behind the slow marker."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from icckd.comparison import compare
from icckd.experiment import Experiment, RunFolder
from icckd.experiment.progress import no_progress
from icckd.settings import read_comparison

CONFIGS = Path(__file__).parents[2] / "configs" / "neighbours"
# The system that each is about, beside its baseline, and what is measured of it.
SYSTEMS = {
    "supcon": ("spread-0.5", "teacher.fine_probe"),
    "wsc": ("wsc-40", "teacher.test_accuracy"),
    "wsc-partial": ("wsc", "teacher.test_accuracy"),
    "class-augmentation": ("class-conditional", "teacher.worst_class_accuracy"),
    "center": ("average", "teacher.recall_at_1"),
    "hierarchical": ("hierarchical-30", "teacher.recall_at_1"),
    "multi-head": ("multi-head", "student.test_accuracy"),
    "absld": ("absld", "student.worst_class_robust_accuracy"),
    "pkd": ("pkd", "student.class_accuracy_gap"),
    "spectrum": ("spectrum", "teacher.macro_f1"),
    "staged": ("staged", "student.test_accuracy"),
    "rgal": ("triplets-1", "student.test_accuracy"),
}
SMALL = {
    "data.train_fraction": 0.15,
    "evaluation.steps": 1,
    "federated.rounds": 2,
    **{f"{stage}.{name}": value for stage in ("teacher", "student") for name, value in
       {"arch": "convnet-small", "epochs": 1, "warmup_epochs": 0}.items()},
    **{f"student.loss.rgal.{name}": value for name, value in {"synthesis_steps": 2, "steps": 3, "images": 64}.items()},
}  # fmt: skip
# Other small settings of some.
OWN = {
    "staged": {"student.epochs": 2},  # One for each stage.
}


def test_there_is_one_for_each_system():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(SYSTEMS)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_miniature_answers_with_two_seeds(name, tmp_path, monkeypatch):
    # Runs in this process, without their pages, take a fifth of the time; the comparison finds them finished.
    monkeypatch.setattr("icckd.experiment.experiment.write_report", lambda path: None)
    whole = read_comparison(CONFIGS / f"{name}.yaml", SMALL | OWN.get(name, {}), seeds=[0, 1])
    system, metric = SYSTEMS[name]
    assert metric in whole.metrics
    baseline = whole.baselines()[system]
    assert baseline != system
    variants = {variant: whole.variants[variant] for variant in (baseline, system)}
    small = replace(whole, variants=variants, baseline=baseline, against=None)
    for variant in variants:
        for seed in small.seeds:
            folder = RunFolder(tmp_path / "runs" / "runs" / variant / str(seed))
            Experiment(small.settings(variant, seed), small.stages, progress=no_progress).run(folder)
    found = answer(small, tmp_path, resume=True)
    difference = found["differences"][system][metric]
    assert difference["n"] == 2
    assert difference["low"] <= difference["mean"] <= difference["high"]
    values = [found["variants"][variant][metric]["values"] for variant in variants]
    assert difference["mean"] == pytest.approx(sum(values[1][s] - values[0][s] for s in "01") / 2, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_five_seeds_end_with_an_interval_for_every_metric(name, tmp_path):
    whole = read_comparison(CONFIGS / f"{name}.yaml")
    assert len(whole.seeds) == 5
    found = answer(whole, tmp_path)
    assert not found["unfinished"]
    for by_metric in found["differences"].values():
        assert {of["n"] for of in by_metric.values()} == {5}
        assert all(of["low"] <= of["mean"] <= of["high"] for of in by_metric.values())


def answer(comparison, folder, **choices):
    compare(comparison, folder / "runs", **choices).check()
    return json.loads((folder / "runs" / "compare.json").read_text())
