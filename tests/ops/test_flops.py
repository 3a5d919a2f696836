"""FlopCounterMode's count of the losses of pairs, against counts of the pairs themselves."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from icckd.functional import cross_entropy_with_margin, intra_class_contrastive, kd_kl, rkd_angle, rkd_distance

ROWS, DIM = 12, 5
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, -1, -1, 0])
MEMORY_LABELS = torch.tensor([0, 1, 1, -1])
GATE = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1.0])


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def pairs(labels, gate, others):
    return sum(a == b and a >= 0 and g > 0 for a, g in zip(labels, gate, strict=True) for b in others)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_intra_class_counts_the_pairs_of_a_class(reduction):
    anchor, memory = torch.randn(ROWS, DIM), torch.randn(4, DIM)
    options = {"gate": GATE, "memory": memory, "memory_labels": MEMORY_LABELS, "reduction": reduction}
    labels, gate = LABELS.tolist(), GATE.tolist()
    batch, remembered = pairs(labels, gate, labels), pairs(labels, gate, MEMORY_LABELS.tolist())
    forward = 2 * DIM * (batch + remembered)
    backward = forward + 2 * DIM * batch
    assert counted(lambda: intra_class_contrastive(anchor, anchor, LABELS, **options)) == forward
    anchor.requires_grad_()
    again = forward if reduction == "none" else 0
    assert (
        counted(lambda: intra_class_contrastive(anchor, anchor, LABELS, **options).sum().backward())
        == forward + again + backward
    )
    positive, anchor = anchor, anchor.detach()
    assert (
        counted(lambda: intra_class_contrastive(anchor, positive, LABELS, **options).sum().backward())
        == forward + again
    )


@pytest.mark.parametrize(("num_classes", "share"), [(None, 1), (4, 4)])
def test_unknown_labels_are_spread_over_the_classes(num_classes, share):
    with FakeTensorMode():
        anchor, labels = torch.randn(ROWS, DIM), torch.zeros(ROWS, dtype=torch.int64)
        memory = {"memory": torch.randn(8, DIM), "memory_labels": torch.zeros(8, dtype=torch.int64)}
        flops = counted(lambda: intra_class_contrastive(anchor, anchor, labels, num_classes=num_classes, **memory))
    assert flops == 2 * DIM * ROWS * (ROWS + 8) // share


def test_relations_count_pairs_and_triples():
    student, teacher = torch.randn(ROWS, DIM), torch.randn(ROWS, 7)
    distances = 2 * ROWS**2 * (DIM + 7)
    assert counted(lambda: rkd_distance(student, teacher)) == distances
    assert counted(lambda: rkd_angle(student, teacher)) == distances + 8 * ROWS**3
    student.requires_grad_()
    pull = 2 * ROWS**2 * DIM
    assert counted(lambda: rkd_distance(student, teacher).backward()) == distances + pull
    assert counted(lambda: rkd_angle(student, teacher).backward()) == distances + pull + 16 * ROWS**3


def test_what_is_done_number_by_number_counts_as_nothing():
    student, teacher = torch.randn(2, ROWS, DIM)
    assert counted(lambda: kd_kl(student, teacher)) == 0
    assert counted(lambda: cross_entropy_with_margin(student, LABELS.clamp(min=0))) == 0
