"""The intra-class loss of rows that travel, by every strategy, against the definition on all rows."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from icckd import ClassMemory, IntraClassContrastiveLoss, TeacherLoss, reference
from icckd.exchange import Ranks
from icckd.functional import intra_class_contrastive

DIM = 4
# Labels of so many classes; "dominated": as of many, but two rows of three have one.
LABELS = ("one", "few", "many", "dominated")


class Rows:
    """Anchors, positives, labels and gates of all ranks, some of which are ignored, in float64 and in `dtype`."""

    def __init__(self, counts, labels="few", dtype=torch.float64, seed=0):
        generator = torch.Generator().manual_seed(seed + sum(counts))
        total, classes = sum(counts), {"one": 1, "few": 3, "many": 40, "dominated": 40}[labels]
        self.counts, self.classes = counts, classes
        x = torch.randn(2, total, DIM, generator=generator, dtype=torch.float64).to(dtype)
        self.anchor, self.positive = x.unbind()
        self.labels = torch.randint(0, classes, (total,), generator=generator)
        if labels == "dominated":
            self.labels[torch.rand(total, generator=generator) < 0.7] = 7
        self.labels[torch.rand(total, generator=generator) < 0.1] = -100
        self.gate = torch.rand(total, generator=generator) * (torch.rand(total, generator=generator) < 0.7)

    def of(self, rank):
        return [x.split(self.counts)[rank].clone() for x in (self.anchor, self.positive, self.labels, self.gate)]

    def known(self, here, strategy):
        """What every rank knows of them."""
        return Ranks.known(here.group, self.counts, self.labels.numpy(), strategy)


def mean_over_ranks(here, x):
    x = x.detach().clone()
    dist.all_reduce(x, group=here.group)
    return x / here.size


def check_strategies(here, counts, dtype=torch.float64, tolerance=1e-12, sweep=False):
    """Of all labels, reductions and strategies, or of a few that differ most."""
    for labels in LABELS if sweep else ("few", "dominated"):
        rows = Rows(counts, labels, dtype)
        groups = [here.group, rows.known(here, "auto"), rows.known(here, "owner")]
        if sweep:
            groups += [rows.known(here, "gather"), Ranks.known(here.group, counts, strategy="owner")]
        for reduction in ("mean", "sum", "none") if sweep else ("mean", "none"):
            expected = one_batch(rows, reduction)
            # A sum is one of what "none" gives.
            for group in groups[:1] if reduction == "sum" else groups:
                check_one_batch(here, rows, expected, reduction, group, dtype, tolerance)


def one_batch(rows, reduction, **options):
    """Of the definition: the loss of all rows, and the gradients of anchors, positives and temperature."""
    anchor, positive = (x.double().requires_grad_() for x in (rows.anchor, rows.positive))
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    options = {"gate": rows.gate, "temperature": temperature, "reduction": reduction, **options}
    loss = reference.intra_class_contrastive(anchor, positive, rows.labels, **options)
    gradients = torch.autograd.grad(loss.sum(), (anchor, positive, temperature), allow_unused=True)
    zeros = (torch.zeros_like(x) for x in (anchor, positive, temperature))
    return loss.detach(), *(z if g is None else g for g, z in zip(gradients, zeros, strict=True))


def check_one_batch(here, rows, expected, reduction, group, dtype=torch.float64, tolerance=1e-12, **options):
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    anchor, positive, labels, gate = rows.of(here.rank)
    anchor.requires_grad_()
    positive.requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    options = {"gate": gate, "temperature": temperature, "reduction": reduction, "group": group, **options}

    loss = intra_class_contrastive(anchor, positive, labels, **options)
    d_anchor, d_positive, d_temperature = torch.autograd.grad(loss.sum(), (anchor, positive, temperature))
    # Averaging over ranks, as DistributedDataParallel does, divides by their number.
    ranks = here.size if reduction == "mean" else 1
    if reduction == "none":
        torch.testing.assert_close(loss, expected[0].split(rows.counts)[here.rank], **close)
    else:
        torch.testing.assert_close(here.size / ranks * mean_over_ranks(here, loss), expected[0], **close)
    torch.testing.assert_close(d_anchor / ranks, expected[1].split(rows.counts)[here.rank], **close)
    torch.testing.assert_close(d_positive / ranks, expected[2].split(rows.counts)[here.rank], **close)
    torch.testing.assert_close(here.size / ranks * mean_over_ranks(here, d_temperature), expected[3], **close)


def check_positives_without_gradient(here):
    rows = Rows(counts_of(here))
    _, d_anchor, _, _ = one_batch(rows, "mean")
    for group in (here.group, rows.known(here, "owner"), rows.known(here, "gather")):
        anchor, positive, labels, gate = rows.of(here.rank)
        loss = intra_class_contrastive(
            anchor.requires_grad_(), positive, labels, gate=gate, temperature=0.3, group=group
        )
        (gradient,) = torch.autograd.grad(loss, anchor)
        torch.testing.assert_close(gradient / here.size, d_anchor.split(rows.counts)[here.rank], rtol=1e-12, atol=1e-12)


def check_gradients_are_scaled_and_come_again(here):
    rows = Rows(counts_of(here))
    anchor, positive, labels, _ = rows.of(here.rank)
    anchor.requires_grad_()
    loss = intra_class_contrastive(anchor, positive, labels, group=rows.known(here, "owner"))
    (once,) = torch.autograd.grad(loss, anchor, retain_graph=True)
    once.add_(1)
    (thrice,) = torch.autograd.grad(3 * loss, anchor)
    torch.testing.assert_close(thrice, 3 * (once - 1))


def check_bits_and_evaluation(here):
    for strategy in ("auto", "owner", "gather"):
        rows = Rows(counts_of(here), "dominated", torch.float32)
        anchor, positive, labels, gate = rows.of(here.rank)
        inputs = (anchor.requires_grad_(), positive.requires_grad_())
        results = []
        for _ in range(2):
            loss = intra_class_contrastive(*inputs, labels, gate=gate, group=rows.known(here, strategy))
            results.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
        assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
        with torch.no_grad():
            loss = intra_class_contrastive(*inputs, labels, gate=gate, group=rows.known(here, strategy))
        torch.testing.assert_close(loss, results[0][0])


def check_auto_splits_what_dominates(here):
    """A class of more rows than twice a rank's fair share, and no other."""
    each, twice_fair = 64, 128
    for excess in (0, 1) if here.size > 2 else (0,):
        labels = np.arange(each * here.size) + 1000
        labels[: twice_fair + excess] = 7
        ranks = Ranks.known(here.group, [each] * here.size, labels)
        plan = ranks.plan(torch.from_numpy(labels[ranks.own]), "auto")
        gathered = (64, 64, 1, 0)[: here.size] if excess else None
        assert (plan.together.counts if plan.together else None) == gathered
        assert sum(plan.route.sent) == each - (gathered[here.rank] if gathered else 0)
        assert len(plan.staying) == each - sum(plan.route.sent)


def check_errors(here):
    x, labels = torch.randn(3, DIM), torch.zeros(3, dtype=torch.int64)
    counts, zeros = [3] * here.size, np.zeros(3 * here.size, np.int64)
    with pytest.raises(ValueError, match=f"counts has 1 numbers; it should have {here.size}"):
        Ranks.known(here.group, [3])
    with pytest.raises(ValueError, match=r"labels has shape \(2,\); it should be"):
        Ranks.known(here.group, counts, zeros[:2])
    with pytest.raises(ValueError, match="strategy is 'ring'; it should be one of auto, gather, owner"):
        Ranks.known(here.group, counts, zeros, "ring")
    ranks = Ranks.known(here.group, counts, zeros)
    with pytest.raises(ValueError, match="anchor has 2 rows; it should have 3, as group says"):
        intra_class_contrastive(x[:2], x[:2], labels[:2], group=ranks)
    with pytest.raises(ValueError, match="labels are others than group says"):
        intra_class_contrastive(x, x, labels + 1, group=ranks)
    ranks = Ranks.known(here.group, counts, zeros + 5)
    with pytest.raises(ValueError, match="labels reach 5; they should be below num_classes = 4"):
        intra_class_contrastive(x, x, labels + 5, num_classes=4, group=ranks)
    with pytest.raises(ValueError, match="gate holds a negative"):
        intra_class_contrastive(x, x, labels, gate=torch.full((3,), -1.0), group=here.group)
    memory = ClassMemory(5, 2, DIM, group=here.group)
    with pytest.raises(ValueError, match="group is None; it should be the group among whose ranks"):
        IntraClassContrastiveLoss()(x, x, labels, memory=memory)
    with pytest.raises(ValueError, match="memory holds all classes; with the strategy 'owner'"):
        TeacherLoss()(x, labels, x, x, ClassMemory(DIM, 2, DIM), group=Ranks.known(here.group, counts, zeros, "owner"))
    memory.rank = (here.rank + 1) % here.size
    with pytest.raises(ValueError, match=f"memory holds part {memory.rank} of {here.size}; it should hold part"):
        TeacherLoss()(x, labels, x, x, memory, group=here.group)
    with pytest.raises(RuntimeError, match="group is given within a transform"):
        torch.func.grad(lambda z: intra_class_contrastive(z, x, labels, group=ranks))(x)


def counts_of(here):
    """Uneven, with an empty rank."""
    return [9, 0, 14, 5][: here.size]


def every_check(here):
    check_strategies(here, counts_of(here), sweep=here.size == 4)
    check_strategies(here, [0] * here.size)
    check_strategies(here, [0, 11, 0, 0][: here.size], torch.float32, 1e-5)
    if here.size == 4:
        check_strategies(here, [6] * here.size, torch.bfloat16, 2e-2)
        check_strategies(here, counts_of(here), torch.float16, 5e-3)
    check_positives_without_gradient(here)
    check_gradients_are_scaled_and_come_again(here)
    check_bits_and_evaluation(here)
    check_auto_splits_what_dominates(here)
    check_errors(here)
