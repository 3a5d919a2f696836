"""A small teacher and student, and a batch of their images."""

from dataclasses import replace

import pytest
import torch

from icckd.data import Batch
from icckd.models import build_model
from icckd.settings import StudentLossSettings
from icckd.training import DistillationTask, FrozenTeacher

CLASSES, IMAGES, BATCH = 5, 40, 8


class Distillation:
    """What a method is given: both networks, the training labels, and batches of random images."""

    def __init__(self, student="resnet8", teacher="wrn_16_1", size=16, seed=0):
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.size = size
        self.student, self.teacher = (build_model(arch, 3, CLASSES, size) for arch in (student, teacher))
        self.labels = torch.arange(IMAGES) % CLASSES
        flat = ([0.0] * 3, [1.0] * 3)
        self.frozen = FrozenTeacher(self.teacher, flat, flat)

    def task(self, method, **changes):
        """The task of these methods; `changes` are settings of the loss, or of a method: kd={"temperature": 2.0}."""
        settings = StudentLossSettings(method=method)
        for name, value in changes.items():
            if isinstance(value, dict):
                changes[name] = replace(getattr(settings, name), **value)
        return DistillationTask(self.student, self.frozen, self.labels, replace(settings, **changes))

    def batch(self):
        indices = torch.randperm(IMAGES, generator=self.generator)[:BATCH]
        images = torch.randn(BATCH, 3, self.size, self.size, generator=self.generator)
        return Batch((images,), self.labels[indices], indices)


@pytest.fixture
def distillation():
    return Distillation()
