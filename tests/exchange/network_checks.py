"""Networks in training on several ranks: losses and averaged gradients against one process's on all rows."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from icckd import ClassMemory, TeacherLoss, reference
from icckd.exchange import Ranks, owners, ranks
from tests.exchange.owner_checks import counts_of, mean_over_ranks

CLASSES, PIXELS, DIM = 7, 5, 6


class Network(nn.Module):
    """Features and logits of rows."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(PIXELS, 8), nn.Tanh(), nn.Linear(8, DIM))
        self.classifier = nn.Linear(DIM, CLASSES)

    def forward(self, x):
        features = self.trunk(x)
        return features, self.classifier(features)


class Step:
    """Two views of all ranks' images, with labels some of which are ignored, a network, and a memory."""

    def __init__(self, here, seed, counts=None):
        generator = torch.Generator().manual_seed(seed)
        self.here, self.counts = here, counts or counts_of(here)
        total = sum(self.counts)
        self.views = torch.randn(2, total, PIXELS, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(0, CLASSES, (total,), generator=generator)
        self.labels[torch.rand(total, generator=generator) < 0.2] = -100
        self.anchors = torch.rand(total, generator=generator) < 0.8
        torch.manual_seed(seed)
        self.network = Network().double()
        rows, labels = torch.randn(30, DIM, generator=generator), torch.arange(30) % CLASSES
        self.single = ClassMemory(CLASSES, 3, DIM)
        self.part = ClassMemory(CLASSES, 3, DIM, group=here.group)
        self.single.push(rows, labels)
        own = labels % here.size == here.rank
        self.part.push(rows[own], labels[own])

    def groups(self):
        labels = self.labels.numpy()
        return [self.here.group, *(Ranks.known(self.here.group, self.counts, labels, x) for x in ("auto", "owner"))]

    def own(self):
        rank = self.here.rank
        views = torch.cat([view.split(self.counts)[rank] for view in self.views])
        return views, self.labels.split(self.counts)[rank], self.anchors.split(self.counts)[rank]

    def losses(self, network, group, memory, module=None):
        """This rank's losses."""
        views, labels, anchors = self.own()
        features, logits = network(views)
        (anchor, positive), logits = features.chunk(2), logits[: len(labels)]
        module = module or TeacherLoss(0.5, 0.0, "logit", temperature=0.3, label_smoothing=0.1)
        return module(logits, labels, anchor, positive, memory, anchors=anchors, group=group)

    def of_one_process(self, remembers, weight=0.5):
        """Total, cross-entropy, intra-class loss, active fraction and mean margin; and a network with the gradient."""
        network = copy.deepcopy(self.network)
        anchor, logits = network(self.views[0])
        positive, _ = network(self.views[1])
        labelled = self.labels >= 0
        count = labelled.sum().clamp(min=1)
        rows, margin = reference.cross_entropy_with_margin(
            logits, self.labels, space="logit", label_smoothing=0.1, reduction="none"
        )
        gate, options = (margin > 0) & self.anchors, {}
        if remembers:
            memory, options["memory_labels"] = self.single.tensors()
            options["memory"] = memory.double()
        intra_class = reference.intra_class_contrastive(
            anchor, positive, self.labels, gate=gate, temperature=0.3, **options
        )
        cross_entropy = rows.sum() / count
        total = cross_entropy + weight * intra_class
        total.backward()
        margins = torch.where(labelled, margin, 0).sum() / count
        return [total, cross_entropy, weight and intra_class, gate.sum() / count, margins], network


def check_losses(here, actual, expected):
    for x, y in zip(actual, expected, strict=True):
        y = torch.as_tensor(y, dtype=torch.float64).detach()
        # Margins are float32.
        torch.testing.assert_close(mean_over_ranks(here, x.double()), y, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mean_over_ranks(here, actual.total), expected[0].detach(), rtol=1e-12, atol=1e-12)


def check_gradients(actual, network):
    for (name, x), y in zip(actual.named_parameters(), network.parameters(), strict=True):
        gradient = x.grad.full_tensor() if hasattr(x.grad, "full_tensor") else x.grad
        torch.testing.assert_close(gradient, y.grad, rtol=1e-12, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}")


def check_data_parallel(here):
    for remembers in (False, True):
        step = Step(here, 1)
        expected, single = step.of_one_process(remembers)
        for group in step.groups():
            replica = DistributedDataParallel(copy.deepcopy(step.network), process_group=here.group)
            memory = step.part if remembers else None
            losses = step.losses(replica, group, memory)
            losses.total.backward()
            check_losses(here, losses, expected)
            check_gradients(replica.module, single)


def check_sharded_network(here):
    step = Step(here, 2)
    expected, single = step.of_one_process(True)
    sharded = copy.deepcopy(step.network)
    mesh = DeviceMesh.from_group(here.group, "cpu")
    for part in (sharded.trunk, sharded.classifier, sharded):
        fully_shard(part, mesh=mesh)
    losses = step.losses(sharded, step.groups()[2], step.part)
    losses.total.backward()
    check_losses(here, losses, expected)
    check_gradients(sharded, single)


def check_cross_entropy_alone(here):
    step = Step(here, 3)
    expected, single = step.of_one_process(False, weight=0)
    module = TeacherLoss(0, 0.0, "logit", label_smoothing=0.1, group=here.group)
    for group in (None, step.groups()[1]):
        replica = DistributedDataParallel(copy.deepcopy(step.network), process_group=here.group)
        losses = step.losses(replica, group, None, module)
        losses.total.backward()
        check_losses(here, losses, expected)
        check_gradients(replica.module, single)


def check_nothing_labelled(here):
    """On no rank, or on none that has rows."""
    for counts in ([0] * here.size, [2] * here.size):
        step = Step(here, 4, counts)
        step.labels.fill_(-100)
        for group in (here.group, Ranks.known(here.group, counts, step.labels.numpy())):
            losses = step.losses(step.network, group, None)
            losses.total.backward()
            assert all(x == 0 for x in losses)
            assert all(x.grad is None or not x.grad.any() for x in step.network.parameters())


class Watched(nn.Module):
    """A classifier that writes into `log` when backward has come through it."""

    def __init__(self, classifier, log):
        super().__init__()
        self.classifier, self.log = classifier, log

    def forward(self, x):
        logits = self.classifier(x)
        logits.grad_fn.register_hook(lambda *_: self.log.append("classifier"))
        return logits


def check_backward_waits_as_late_as_it_can(here, monkeypatch):
    step, log = Step(here, 7), []
    step.network.classifier = Watched(step.network.classifier, log)
    losses = step.losses(step.network, step.groups()[1], None)
    wait = owners.Gradients.wait
    with monkeypatch.context() as patch:
        patch.setattr(owners.Gradients, "wait", lambda gradients: log.append("wait") or wait(gradients))
        losses.total.backward()
    assert log == ["classifier", "wait"]


def check_compiled_steps(here):
    step = Step(here, 5)
    expected, single = step.of_one_process(True)
    compiled = torch.compile(step.losses, backend="eager")
    for group in step.groups()[::2]:
        network = copy.deepcopy(step.network)
        losses = compiled(network, group, step.part)
        losses.total.backward()
        check_losses(here, losses, expected)
        for x in network.parameters():
            x.grad = mean_over_ranks(here, x.grad)
        check_gradients(network, single)


def check_nothing_is_asked_of_known_ranks(here, monkeypatch):
    """No exchange of integers, and no look at a number, in a step and the pushes that follow it."""
    step = Step(here, 6)
    group = step.groups()[1]

    def refuse(*args, **kwargs):
        raise AssertionError("ranks were asked")

    def refused_to_us(original):
        def look(*args, **kwargs):
            # What runs on a CPU only, backends and checks of values, may look.
            path = Path(sys._getframe(1).f_code.co_filename)
            assert path.parent.name not in ("exchange", "functional", "icckd"), f"{path} looked at a number"
            return original(*args, **kwargs)

        return look

    with monkeypatch.context() as patch:
        for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
            patch.setattr(torch.Tensor, name, refused_to_us(getattr(torch.Tensor, name)))
        # Labels are compared with those known on a CPU only.
        patch.setattr(ranks, "_check_rows", lambda *_: None)
        patch.setattr(dist, "all_gather", refuse)
        step.losses(step.network, group, step.part).total.backward()
        step.part.push(*group.arrived)


def every_check(here):
    check_data_parallel(here)
    check_cross_entropy_alone(here)
    check_nothing_labelled(here)
    check_sharded_network(here)
    if here.size == 2:
        check_compiled_steps(here)
    with pytest.MonkeyPatch.context() as monkeypatch:
        check_nothing_is_asked_of_known_ranks(here, monkeypatch)
        check_backward_waits_as_late_as_it_can(here, monkeypatch)
