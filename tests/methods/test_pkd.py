"""Partial distillation: weak classes, groups and the loss, by explicit loops."""

import math

import pytest
import torch

from icckd.methods.base import Network, Pair
from icckd.methods.pkd import Pkd, PkdSettings, confusion_groups, weak_classes

CLASSES = 7
NETWORK = Network(4, CLASSES, {})


def method(**settings):
    return Pkd(PkdSettings(**settings), Pair(NETWORK, NETWORK, torch.zeros(0, dtype=torch.int64)), "auto")


def confusion_matrix(generator, classes=CLASSES):
    matrix = torch.randint(0, 4, (classes, classes), generator=generator)
    return matrix + torch.diag(torch.randint(0, 60, (classes,), generator=generator))


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3])
def test_weak_classes_are_below_the_mean_recall_by_the_threshold(generator, threshold):
    for _ in range(10):
        matrix = confusion_matrix(generator)
        matrix[2] = 0  # A class without images.
        rows = matrix.tolist()
        recall = {c: row[c] / sum(row) for c, row in enumerate(rows) if sum(row)}
        mean = sum(recall.values()) / len(recall)
        assert weak_classes(matrix, threshold) == [c for c, of in recall.items() if of < mean - threshold]


@pytest.mark.parametrize("least", [0.01, 0.05, 0.1])
def test_groups_are_what_weak_classes_reach_by_mutual_confusion(generator, least):
    grouped = 0
    for _ in range(20):
        matrix = confusion_matrix(generator)
        matrix[3] = 0
        weak = weak_classes(matrix, 0.1)
        rows = matrix.tolist()

        def joined(a, b, rows=rows, weak=weak):
            shares = [rows[x][y] / sum(rows[x]) if sum(rows[x]) else 0.0 for x, y in ((a, b), (b, a))]
            return a != b and min(shares) >= least and (a in weak or b in weak)

        expected = []
        for start in range(CLASSES):
            reached = {start}
            for _ in range(CLASSES):
                reached |= {b for a in reached for b in range(CLASSES) if joined(a, b)}
            if len(reached) > 1 and tuple(sorted(reached)) not in expected:
                expected.append(tuple(sorted(reached)))
        groups = confusion_groups(matrix, weak, least)
        assert groups == expected
        grouped += len(groups)
    assert grouped


def softmax(values, temperature):
    exponentials = [math.exp(value / temperature) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def expected_divergence(logits, labels, groups, experts, temperature):
    terms = []
    for i, label in enumerate(labels.tolist()):
        row = logits[i].tolist()
        predicted = row.index(max(row))
        for group, expert in zip(groups, experts, strict=True):
            if label in group and predicted in group and predicted != label:
                q = softmax([expert[i, c].item() for c in group], temperature)
                p = softmax([row[c] for c in group], temperature)
                terms.append(temperature**2 * sum(a * math.log(a / b) for a, b in zip(q, p, strict=True)))
    return sum(terms) / max(len(terms), 1), len(terms)


def test_the_loss_is_its_formula_and_its_gradient_that_of_the_confused_images(generator):
    groups, pkd = ((0, 3), (1, 4, 6)), method(weight=0.7, temperature=3.0)
    logits = torch.randn(40, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
    experts = [torch.randn(40, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True) for _ in groups]
    labels = torch.randint(0, CLASSES, (40,), generator=generator)
    losses = pkd(logits, labels, groups, experts)
    soft, number = expected_divergence(logits, labels, groups, experts, 3.0)
    assert number > 3
    hard = -sum(math.log(softmax(row.tolist(), 1)[y]) for row, y in zip(logits, labels.tolist(), strict=True)) / 40
    assert losses["pkd"].item() == pytest.approx(soft)
    assert losses["cross_entropy"].item() == pytest.approx(hard)
    assert losses["loss"].item() == pytest.approx(hard + 0.7 * soft)
    losses["pkd"].backward()
    # T² KL has the gradient T (p − q) by the logits of its row.
    expected = torch.zeros_like(logits)
    for i, label in enumerate(labels.tolist()):
        for group, expert in zip(groups, experts, strict=True):
            predicted = int(logits[i].argmax())
            if label in group and predicted in group and predicted != label:
                p, q = (softmax([of[i, c].item() for c in group], 3.0) for of in (logits, expert))
                expected[i, list(group)] = 3.0 * (torch.tensor(p) - torch.tensor(q)).double() / number
    torch.testing.assert_close(logits.grad, expected, rtol=1e-6, atol=1e-8)
    assert all(expert.grad is None for expert in experts)


def test_nothing_confused_adds_nothing(generator):
    labels = torch.tensor([0, 3, 5])
    logits = torch.eye(CLASSES)[torch.tensor([0, 5, 3])].requires_grad_()
    loss = method().partial_divergence(logits, labels, [(0, 3)], [torch.randn(3, CLASSES, generator=generator)])
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_an_expert_learns_to_tell_the_classes_of_its_group(generator):
    group, labels = (1, 4, 6), torch.tensor([4, 1, 6, 6])
    logits = torch.randn(4, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = method().expert_loss(logits, labels, group)
    expected = [-math.log(softmax([row[c].item() for c in group], 1)[group.index(y)])
                for row, y in zip(logits, labels.tolist(), strict=True)]  # fmt: skip
    assert loss.item() == pytest.approx(sum(expected) / 4)
    loss.backward()
    assert not logits.grad[:, [0, 2, 3, 5]].any()
    assert logits.grad[:, group].all()
