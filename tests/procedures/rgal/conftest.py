"""A small student's lesson without training images."""

from functools import cache

import pytest
import torch

from icckd.data import load_data
from icckd.distributed import ALONE
from icckd.models import build_model
from icckd.procedures import Lesson
from icckd.settings import DataSettings, settings_from
from icckd.training import FrozenTeacher

SMALL = {"noise": 6, "width": 4, "synthesis_steps": 2, "images": 20, "capacity": 50, "steps": 3}
GIVEN = {
    "student.loss.method": "rgal", "student.arch": "convnet-small", "student.epochs": 4, "student.batch_size": 8,
    "student.warmup_epochs": 0.0, "seed": 5, "device": "cpu",
}  # fmt: skip


@cache
def digits():
    return load_data(DataSettings(), train=False)


@cache
def settings_with(changes):
    rgal = {f"student.loss.rgal.{name}": value for name, value in SMALL.items()}
    return settings_from(GIVEN | rgal | dict(changes), "test")


def make_lesson(teacher="convnet-small", **changes):
    settings = settings_with(tuple(changes.items()))
    data = digits()
    torch.manual_seed(1)
    taught, student = (build_model(arch, 1, 10, 8) for arch in (teacher, "convnet-small"))
    return Lesson(
        student=student,
        teacher=FrozenTeacher(taught, ([0.3], [0.4]), (data.mean, data.std)),
        data=data,
        settings=settings,
        device=torch.device("cpu"),
        batches=lambda *arguments, **options: pytest.fail("batches of training images were asked for"),
        prepared=lambda task: task,
        world=ALONE,
    )


@pytest.fixture
def lesson():
    return make_lesson()
