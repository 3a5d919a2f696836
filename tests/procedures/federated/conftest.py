"""A federation of a few clients with random images, in one process."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from icckd.data import Batches
from icckd.distributed import ALONE
from icckd.models import build_model
from icckd.procedures import Lesson
from icckd.procedures.federated import FederatedLearning
from icckd.procedures.federated.clients import NearClients
from icckd.settings import settings_from
from icckd.training import FrozenTeacher

CLASSES, IMAGES = 4, 60
SETTINGS = {
    "student": {"arch": "resnet8", "batch_size": 8, "warmup_epochs": 0, "learning_rate": 0.05, "epochs": 99},
    "student.loss.method": "pkd",
    "student.loss.pkd": {"warmup_rounds": 1, "expert_rounds": 2, "weight": 3.0},
    "federated": {"clients": 3, "rounds": 3, "skew": 2.0},
}


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


def federation(clients_of=NearClients, **changes):
    """The procedure, anew but the same for the same `changes` of settings."""
    data = images(torch.Generator().manual_seed(0))
    settings = settings_from({**SETTINGS, **changes}, "the test")
    torch.manual_seed(1)
    student = build_model("resnet8", 1, CLASSES, 8)
    flat = ([0.0], [1.0])
    lesson = Lesson(
        student=student,
        teacher=FrozenTeacher(build_model("resnet8", 1, CLASSES, 8), flat, flat),
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
