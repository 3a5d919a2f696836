"""Whole runs of several processes against those of one: files, learning curves, checkpoints, ends."""

import json
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from icckd.data import Batches, FineLabels
from icckd.distributed import ALONE
from icckd.errors import Interrupted, TrainingDiverged
from icckd.experiment import Experiment, RunFolder
from icckd.experiment.evaluation import predict
from icckd.experiment.probe import FineProbe
from icckd.experiment.robustness import Attack
from icckd.models import build_model
from icckd.settings import EvaluationSettings, settings_from
from icckd.training import StopSignal

# Margins make a step of the loss of what is rounded: with every sample an anchor rounding stays small.
SETTINGS = settings_from(
    {
        "data.train_fraction": 0.15,
        "data.validation": 0.5,
        "checkpoint_every": 3,
        "device": "cpu",
        **{
            f"{stage}.{name}": value
            for stage in ("teacher", "student")
            for name, value in {
                "arch": "resnet8",
                "epochs": 2,
                "batch_size": 20,
                "drop_last": False,
                "learning_rate": 0.02,
                "sync_batch_norm": True,
            }.items()
        },
        "teacher.loss.margin": -1.0,
        "teacher.loss.weight": 0.2,
        "teacher.memory.capacity": 2,
    },
    "test",
)


def sharded(settings):
    parts = {"shard_parameters": True}
    return replace(settings, teacher=replace(settings.teacher, **parts), student=replace(settings.student, **parts))


class StopAfter(StopSignal):
    """As if a signal came to the second process after so many looks."""

    def __init__(self, looks, rank):
        self.looks = looks if rank == 1 else 10**9

    @property
    def received(self):
        self.looks -= 1
        return 15 if self.looks < 0 else None


def run(path, settings, world, stages=("teacher", "student"), stop=None, page=False, **how):
    signals = StopSignal if stop is None else lambda: nullcontext(stop)
    # The pages take a good part of so small a run's time.
    with nullcontext() if page else patch("icckd.experiment.experiment.write_report"):
        return Experiment(settings, stages, world=world, stop=signals).run(RunFolder(path), **how)


def curve(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "stage")} for line in lines]


def assert_same_curve(path, expected):
    for found, wanted in zip(curve(path), curve(expected), strict=True):
        assert found["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-3), path
        # Rounding may decide about a few images.
        assert found == pytest.approx(wanted, rel=0.01, abs=0.01), path


def check_runs(folder, world):
    torch.manual_seed(world.rank)
    one, two, parts = folder / "one", folder / "two", folder / "parts"
    if world.first:
        run(one, SETTINGS, ALONE, page=True)
    run(two, SETTINGS, world, page=True)
    with pytest.raises(Interrupted):
        run(parts, sharded(SETTINGS), world, stop=StopAfter(5, world.rank))
    if not world.first:
        return
    assert_same_curve(two, one)
    assert {x.relative_to(two) for x in two.rglob("*")} == {x.relative_to(one) for x in one.rglob("*")}
    assert json.loads((two / "summary.json").read_text())["environment"]["processes"] == 2
    for stage in ("teacher", "student"):
        found, wanted = (load_file(path / stage / "model.safetensors") for path in (two, one))
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-2, msg=lambda t, n=name: f"{n}: {t}")
    assert not (parts / "metrics.jsonl").exists()


def check_continued_by_more(folder, world):
    """What two began in parts three go on with as replicas, and one ends."""
    parts = folder / "parts"
    with pytest.raises(Interrupted):
        run(parts, SETTINGS, world, resume=True, stop=StopAfter(6, world.rank))
    if world.first:
        run(parts, sharded(SETTINGS), ALONE, resume=True)
        assert_same_curve(parts, folder / "one")


def check_divergence(folder, world):
    """It is every process's, and the last good checkpoint stays."""
    broken = replace(SETTINGS, teacher=replace(SETTINGS.teacher, learning_rate=1e30, warmup_epochs=0))
    with pytest.raises(TrainingDiverged, match="the teacher's training diverged"):
        run(folder / f"broken-{world.size}", broken, world, ("teacher",))
    assert (folder / f"broken-{world.size}" / "teacher" / "checkpoint" / "state.pt").exists()


def check_resumed_in_the_same_bits(folder, world):
    """Three sum in an order, which has to be the same again."""
    whole, stopped = folder / "whole", folder / "stopped"
    run(whole, SETTINGS, world, ("teacher",))
    with pytest.raises(Interrupted):
        run(stopped, SETTINGS, world, ("teacher",), stop=StopAfter(4, world.rank))
    run(stopped, SETTINGS, world, ("teacher",), resume=True)
    if world.first:
        found, wanted = (load_file(path / "teacher" / "model.safetensors") for path in (stopped, whole))
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def check_probe(world):
    """Each asks about its parts, of the last batch some about none; the first has the sums of one process."""
    random = torch.Generator().manual_seed(3)
    images = torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8, generator=random)
    labels = torch.randint(6, (50,), generator=random)
    fine = FineLabels(labels, labels, torch.arange(6) % 2)
    torch.manual_seed(0)
    model = build_model("convnet-small", 1, 2, 8)

    def probe(part, world):
        batches = plain_batches(images, labels, part)
        return FineProbe(fine).fit(model, batches, world), batches

    together, _ = probe((world.rank, world.size), world)
    if world.first:
        one, batches = probe((0, 1), ALONE)
        predictions = predict(model, batches)
        for name, ridge in one.by_name.items():
            rows = predictions.features if name == "fine_probe" else predictions.logits.double().div(4).log_softmax(1)
            torch.testing.assert_close(together.by_name[name].scores(rows), ridge.scores(rows), rtol=1e-6, atol=1e-6)
        assert 0.2 < one.measure(predictions)["fine_probe"] < 1


def check_attack(world):
    """Each attacks its parts, of the last batch some none; the first has the answers of one process."""
    random = torch.Generator().manual_seed(3)
    images = torch.randint(256, (34, 1, 8, 8), dtype=torch.uint8, generator=random)
    labels = torch.randint(3, (34,), generator=random)
    torch.manual_seed(0)
    model = build_model("convnet-small", 1, 3, 8)
    attack = Attack(EvaluationSettings("pgd", epsilon=0.1, steps=3, step_size=0.05), [0.5], [0.3], seed=4)
    together = attack.predict(model, plain_batches(images, labels, (world.rank, world.size)), world)
    if world.first:
        one = attack.predict(model, plain_batches(images, labels, (0, 1)))
        torch.testing.assert_close(together.logits, one.logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(together.labels, labels)


def plain_batches(images, labels, part):
    return Batches(
        *(images, labels),
        **{"batch_size": 16, "mean": [0.5], "std": [0.3], "augmentation": None, "views": 1, "shuffle": False},
        **{"seed": 0, "device": "cpu", "drop_last": False, "part": part},
    )
