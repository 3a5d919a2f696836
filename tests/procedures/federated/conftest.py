"""A federation of a few clients with random images, in one process."""

from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from icckd.data import Batches
from icckd.distributed import ALONE
from icckd.models.layers import convolution
from icckd.models.model import Model, Stages
from icckd.procedures import Lesson
from icckd.procedures.federated import FederatedLearning
from icckd.procedures.federated.clients import NearClients
from icckd.settings import settings_from
from icckd.training import FrozenTeacher

CLASSES, IMAGES = 4, 48
SETTINGS = {
    "student": {"batch_size": 12, "warmup_epochs": 0, "learning_rate": 0.05, "epochs": 99},
    "student.loss.method": "pkd",
    "student.loss.pkd": {"warmup_rounds": 1, "expert_rounds": 2, "weight": 3.0},
    "federated": {"clients": 3, "rounds": 3, "skew": 2.0},
}


def small_network():
    """One convolution with batch statistics, whose steps take a millisecond."""
    return Model("small", Stages(6, [[convolution(1, 6), nn.ReLU()]]), 1, CLASSES, 8)


def images(generator):
    labels = torch.arange(IMAGES) % CLASSES
    pixels = torch.randint(0, 256, (IMAGES, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return SimpleNamespace(
        train_images=pixels, train_labels=labels, classes=list("abcd"), mean=(0.5,), std=(0.3,), augmentation=None
    )


def batches_of(data, settings, views=1, *, part=None, batch_size=None):
    return Batches(
        data.train_images[part],
        data.train_labels[part],
        batch_size=batch_size,
        mean=data.mean,
        std=data.std,
        augmentation=None,
        views=views,
        shuffle=True,
        seed=settings.seed,
        device=torch.device("cpu"),
        drop_last=settings.student.drop_last,
    )


@cache
def settings_with(changes):
    return settings_from({**SETTINGS, **dict(changes)}, "the test")


def federation(clients_of=NearClients, **changes):
    """The procedure, anew but the same for the same `changes` of settings."""
    data = images(torch.Generator().manual_seed(0))
    settings = settings_with(tuple(changes.items()))
    torch.manual_seed(1)
    student = small_network()
    flat = ([0.0], [1.0])
    lesson = Lesson(
        student=student,
        teacher=FrozenTeacher(small_network(), flat, flat),
        data=data,
        settings=settings,
        device=torch.device("cpu"),
        batches=partial(batches_of, data, settings),
        prepared=lambda task: task,
        world=ALONE,
    )
    return FederatedLearning(lesson, clients_of)


@pytest.fixture(autouse=True)
def two_groups(monkeypatch):
    """What an untrained network confuses is left to chance; here it is as said."""
    monkeypatch.setattr("icckd.procedures.federated.rounds.confusion_groups", lambda *arguments: [(0, 2), (1, 3)])
