"""That a training step never waits for its device, found on the CPU by looking at every operation that PyTorch runs.

Counted is what would make a GPU's host wait: reading a value back, results whose size is in the data, and constants
that are made on the host and sent. The losses' functions, which do other things on a CPU, have tests of their own.
"""

import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from icckd.data import Batch
from icckd.exchange import route
from icckd.functional import checks
from icckd.methods import StudentMethod, TrainingSet
from icckd.models import build_model
from icckd.ops import values
from icckd.settings import StudentLossSettings, TrainingSettings, methods_of, settings_from
from icckd.training import DistillationTask, FrozenTeacher, TeacherTask, Training, loop

CLASSES, ROWS, IMAGES = 3, 8, 20
NORMALIZATION = ((0.5,), (0.25,))
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount")
SENDS = ("lift_fresh", "lift_fresh_copy")
LOSSES = tuple(str(Path(checks.__file__).parents[1] / folder) for folder in ("functional", "ops", "backends"))


class Watch(TorchDispatchMode):
    """Notes what waits, and what is sent."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._opname
        by_mask = name.startswith("index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in (args[1] if isinstance(args[1], list) else ())
        )
        if (name in WAITS or name in SENDS or by_mask) and not within_a_loss():
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def within_a_loss():
    """Or where numbers are sent from pinned memory, which nobody waits for."""
    frame = sys._getframe()
    while frame is not None and not (
        frame.f_code.co_filename.startswith(LOSSES) or frame.f_code is route.on_device.__code__
    ):
        frame = frame.f_back
    return frame is not None


class Batches:
    def __len__(self):
        return 2 * loop.LOOK_EVERY["cuda"]


def network():
    torch.manual_seed(1)
    return build_model("resnet8", channels=1, classes=CLASSES, image_size=8)


def training(task, settings):
    trained = Training(task, Batches(), settings)
    trained._look_every = loop.LOOK_EVERY["cuda"]
    return trained


def teacher(**given):
    chosen = settings_from({f"teacher.{name}": value for name, value in given.items()}, "test").teacher
    known = TrainingSet(torch.arange(IMAGES) % CLASSES, (1, 8, 8))
    return training(TeacherTask(network(), chosen, IMAGES, known=known), chosen)


def student(method):
    frozen = FrozenTeacher(network(), NORMALIZATION, NORMALIZATION)
    loss = StudentLossSettings(method=method)
    return training(DistillationTask(network(), frozen, torch.arange(IMAGES) % CLASSES, loss), TrainingSettings())


def batch(views):
    images = torch.randn(views, ROWS, 1, 8, 8)
    return Batch(tuple(images), torch.randint(CLASSES, (ROWS,)), torch.randperm(IMAGES)[:ROWS])


def waits_of_a_step(trained, of=None):
    """What waits in a step that is like those before it."""
    of = batch(trained.task.views) if of is None else of
    trained.train_step(of)
    with (
        mock.patch.object(checks, "readable", return_value=False),
        mock.patch.object(values, "readable", return_value=False),
        Watch() as watch,
    ):
        trained._look(trained.train_step(of))
    return watch.seen


def test_the_stand_in_sees_what_waits():
    x = torch.randn(4)
    with Watch() as watch:
        x.sum().item()
        x[x > 0]
        torch.tensor([1.0])
        x + 1
    assert watch.seen == ["_local_scalar_dense", "index", "lift_fresh"]


TEACHERS = {
    "plain": {"loss.weight": 0.0},
    "second view": {},
    "memory": {"memory.capacity": 4},
    "memory of an average": {"memory.capacity": 4, "memory.average": 0.9, "memory.dtype": "float8"},
    "second view detached": {"positive": "second-view-detached"},
    "previous epoch": {"positive": "previous-epoch"},
    "projection": {"loss.space": "projection", "loss.gate": "quantile", "loss.neighbours": 2},
    "soft labels": {"loss.space": "soft-labels", "loss.gate": "soft", "loss.weight_warmup": 0.5},
    "target": {"loss.target_ratio": 0.5},
    "accumulated": {"accumulate": 2},
    "LARS": {"optimizer": "lars"},
    "LAMB": {"optimizer": "lamb"},
    "bfloat16": {"autocast": True},
}


@pytest.mark.parametrize("settings", TEACHERS.values(), ids=TEACHERS)
def test_no_step_of_a_teacher_waits(settings):
    assert waits_of_a_step(teacher(**settings)) == []


@pytest.mark.parametrize("method", ["none", *methods_of(StudentMethod)])
def test_no_step_of_a_student_waits(method):
    assert waits_of_a_step(student(method)) == []


def test_the_loss_is_read_every_so_many_steps():
    trained = teacher()
    trained._look_every = 3
    of = batch(2)
    read = [trained._look(trained.train_step(of)) for _ in range(7)]
    assert [loss is None for loss in read] == [True, True, False, True, True, False, True]
