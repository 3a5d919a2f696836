"""Steps that several processes take together against those of one process on the whole batch."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from icckd.data import Batch, WholeBatch
from icckd.distributed import ALONE
from icckd.distributed.batch_norm import synchronise_batch_norm
from icckd.distributed.parts import whole_tensors
from icckd.methods import TrainingSet
from icckd.models import build_model
from icckd.settings import MemorySettings, StudentLossSettings, TeacherLossSettings, TeacherSettings, TrainingSettings
from icckd.training import DistillationTask, FrozenTeacher, TeacherTask, Training, loop
from tests.training.test_waiting import waits_of_a_step

CLASSES, ROWS, IMAGES = 4, 12, 30
NORMALIZATION = ((0.5,), (0.25,))
EXACT_METHODS = "kd+dkd+nkd+dist+ttm+wttm+rkd+similarity-preserving+pkt+attention"
# These compute in float32 whatever the networks do.
SINGLE_METHODS = "hint+crd"
# How many images of a step each rank has.
COUNTS = {2: [(7, 5), (12, 0), (1, 11)], 3: [(4, 4, 4), (0, 9, 3), (0, 0, 12)], 4: [(1, 5, 0, 6), (3, 3, 3, 3)]}


class Batches:
    def __len__(self):
        return 4


def network(arch="resnet8", seed=1):
    torch.manual_seed(seed)
    return build_model(arch, channels=1, classes=CLASSES, image_size=8).double()


def remove_normalisation(module):
    """That of parts is not that of the whole."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        remove_normalisation(child)


def teacher(group, positive="second-view", views="first", loss=None, **memory):
    chosen = TeacherLossSettings(weight=0.5, margin=-0.3, cross_entropy_views=views, **(loss or {}))
    settings = TeacherSettings(loss=chosen, memory=MemorySettings(**memory), positive=positive, epochs=4)
    known = TrainingSet(torch.zeros(IMAGES, dtype=torch.int64), (1, 8, 8))
    torch.manual_seed(5)
    return TeacherTask(network(), settings, IMAGES, group, known).double()


def neighbour(group, method, candidates=None, people=None, **settings):
    known = TrainingSet(torch.zeros(IMAGES, dtype=torch.int64), (1, 8, 8), candidates, people)
    loss = TeacherLossSettings(method=method)
    setattr(loss, method, replace(getattr(loss, method), **settings))
    torch.manual_seed(3)
    return TeacherTask(network(), TeacherSettings(loss=loss, epochs=4), IMAGES, group, known).double()


def candidates():
    random = torch.Generator().manual_seed(7)
    return (torch.rand(IMAGES, CLASSES, generator=random) < 0.4) | nn.functional.one_hot(
        torch.arange(IMAGES) % CLASSES
    ).bool()


def student(group, method):
    frozen = FrozenTeacher(network("wrn_16_1", seed=2), NORMALIZATION, NORMALIZATION)
    loss = StudentLossSettings(method=method)
    loss.crd.negatives = 20
    labels = torch.arange(IMAGES) % CLASSES
    torch.manual_seed(4)
    return DistillationTask(network(), frozen, labels, loss, group).double()


TASKS = {
    "second view": lambda group: teacher(group, views="both"),
    "memory of an average": lambda group: teacher(group, "second-view-detached", capacity=3, average=0.5),
    "memory": lambda group: teacher(group, capacity=2),
    "previous epoch": lambda group: teacher(group, "previous-epoch"),
    "projection": lambda group: teacher(
        group, loss={"space": "projection", "projection_dim": 8, "gate": "quantile", "target_ratio": 0.4}
    ),
    "soft labels": lambda group: teacher(
        group, loss={"space": "soft-labels", "gate": "soft", "weight_warmup": 0.5, "neighbours": 2}
    ),
    "neighbours in memory": lambda group: teacher(group, capacity=2, loss={"neighbours": 1}),
    "supcon": lambda group: neighbour(group, "supcon", dim=8),
    "hierarchical": lambda group: neighbour(group, "hierarchical"),
    "center": lambda group: neighbour(group, "center"),
    "center by averages": lambda group: neighbour(group, "center", centers="average"),
    "wsc": lambda group: neighbour(group, "wsc", dim=8),
    "wsc of candidates": lambda group: neighbour(group, "wsc", candidates(), dim=8),
    "spectrum": lambda group: neighbour(group, "spectrum", people=torch.arange(IMAGES) // 3, width=4),
    "student": lambda group: student(group, EXACT_METHODS),
    "student in float32": lambda group: student(group, SINGLE_METHODS),
    # Its heads take longer than all others together.
    "heads in float32": lambda group: student(group, "multi-head"),
}


def batch(step, views):
    random = torch.Generator().manual_seed(step)
    indices = torch.randperm(IMAGES, generator=random)[:ROWS]
    images = torch.randn(views, IMAGES, 1, 8, 8, generator=random, dtype=torch.float64)
    return Batch(tuple(images[:, indices]), indices % CLASSES, indices)


def part(of, counts, rank):
    start = sum(counts[:rank])
    rows = slice(start, start + counts[rank])
    whole = WholeBatch(counts, of.labels.numpy(), of.indices.numpy())
    return Batch(tuple(view[rows] for view in of.views), of.labels[rows], of.indices[rows], whole)


def training(make, world, sharded=False, **settings):
    task = make(world.group)
    if "accumulate" in settings:
        remove_normalisation(task)
    if world.group is not None:
        synchronise_batch_norm(task, world.group)
    task.train_together(world, sharded=sharded)
    return Training(task, Batches(), TrainingSettings(learning_rate=0.05, warmup_epochs=0, **settings), world)


@cache
def taken_alone(name, size, **settings):
    """The losses and means of one process's steps, and what its network then is."""
    torch.manual_seed(9)
    alone = training(TASKS[name], ALONE, **settings)
    told = []
    for step, _ in enumerate(COUNTS[size]):
        alone.epoch = alone.task.epoch = step
        told.append((alone.train_step(batch(step, alone.task.views)).item(), alone.counts.means()))
    return told, alone.task.model.state_dict()


def check_steps(world, name, sharded=False, **settings):
    expected, network = taken_alone(name, world.size, **settings)
    torch.manual_seed(9)
    together = training(TASKS[name], world, sharded, **settings)
    close = {"rtol": 1e-5, "atol": 1e-5} if "float32" in name else {"rtol": 1e-7, "atol": 1e-8}
    for step, counts in enumerate(COUNTS[world.size]):
        together.epoch = together.task.epoch = step
        of = part(batch(step, together.task.views), counts, world.rank)
        loss, means = expected[step]
        assert together.train_step(of).item() == pytest.approx(loss, rel=close["rtol"]), (name, step)
        # Margins are float32 whatever the networks are.
        assert together.counts.means() == pytest.approx(means, rel=1e-6, abs=1e-6), (name, step)
    found = whole_tensors(together.task.model)
    for key, wanted in network.items():
        torch.testing.assert_close(found[key], wanted, **close, msg=lambda text, key=key: f"{name} {key}: {text}")


def check_every_task(world):
    for name in TASKS:
        check_steps(world, name)
        if not name.startswith("heads"):
            check_steps(world, name, sharded=True)
    # A teacher with what earlier steps leave, and a student.
    for name in ("second view", "memory of an average", "student"):
        check_steps(world, name, accumulate=2)


def check_replicas_of_three(world):
    for name in ("memory", "student"):
        check_steps(world, name)


def check_parts_of_four(world):
    for name in ("memory of an average", "previous epoch"):
        check_steps(world, name, sharded=True)
    check_steps(world, "student", accumulate=2, sharded=True)


def check_nothing_waits(world):
    for name in TASKS:
        together = training(TASKS[name], world)
        together._look_every = loop.LOOK_EVERY["cuda"]
        of = part(batch(0, together.task.views), COUNTS[2][0], world.rank)
        seen = waits_of_a_step(together, of)
        assert not seen, (name, seen)
