"""Triplets against loops over explicit pairs, and negatives against the frequencies that their weights say."""

import math

import pytest
import torch

from icckd.methods.triplets import Distances, draw_negatives, negative_weights, triplet_loss

CLAMPED, RANGE = Distances(0.5, 1.4, clamped=True), Distances(0.5, 1.0)


def rows(count=14, dim=5, classes=3, seed=0, spread=0.7):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    # Towards a common direction, so that distances of all kinds occur.
    features = spread * torch.randn(count, dim, generator=generator, dtype=torch.float64) + 1
    return features * torch.rand(count, 1, generator=generator, dtype=torch.float64).add(0.5), labels


def unit(features):
    return [[float(x) / math.hypot(*row) for x in row] for row in features.tolist()]


def weights_by_hand(features, labels, distances):
    """The unnormalised weights of the formula, by loops; 0 where a row is no negative."""
    points, dim = unit(features), features.shape[1]
    found = []
    for a, one in enumerate(points):
        found.append([])
        for n, other in enumerate(points):
            delta = math.dist(one, other)
            if labels[a] == labels[n] or delta >= distances.high or (not distances.clamped and delta <= distances.low):
                found[-1].append(0.0)
                continue
            delta = max(delta, distances.low)
            found[-1].append(delta ** (2 - dim) * (1 - delta**2 / 4) ** (-(dim - 3) / 2))
    return found


@pytest.mark.parametrize("distances", [CLAMPED, RANGE])
@pytest.mark.parametrize("dim", [2, 5, 16])
def test_weights_are_the_formula_s(distances, dim):
    features, labels = rows(dim=dim, seed=dim)
    apart = torch.cdist(*[torch.tensor(unit(features), dtype=torch.float64)] * 2)
    found = negative_weights(apart, labels, dim, distances)
    expected = torch.tensor(weights_by_hand(features, labels, distances), dtype=torch.float64)
    assert (expected > 0).any()
    assert (expected == 0).any()
    expected = expected / expected.amax(1, keepdim=True).clamp(min=1e-300)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_many_dimensions_neither_overflow_nor_vanish():
    apart = torch.tensor([[0.0, 0.51, 1.39], [0.51, 0.0, 1.0], [1.39, 1.0, 0.0]])
    found = negative_weights(apart, torch.arange(3), 2048, CLAMPED)
    assert found.isfinite().all()
    assert found.amax(1).tolist() == [1, 1, 1]


def test_negatives_come_as_often_as_they_weigh():
    weights = torch.tensor([[0.0, 1.0, 0.0, 0.25, 0.5], [0.0, 0.0, 0.0, 0.0, 1e-3]], dtype=torch.float64)
    weights = torch.cat([weights, torch.zeros(3, 5, dtype=torch.float64)])
    generator = torch.Generator().manual_seed(1)
    counts, draws = torch.zeros(5, 5), 4000
    for _ in range(draws):
        drawn = draw_negatives(weights, generator)
        counts += torch.nn.functional.one_hot(drawn, 5).sum(1)
    share = counts / (5 * draws)
    torch.testing.assert_close(share[0], (weights[0] / weights[0].sum()).float(), rtol=0, atol=0.01)
    assert share[0][[0, 2]].tolist() == [0, 0]
    assert share[1].tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("distances", [CLAMPED, RANGE])
def test_the_loss_is_a_loop_s_over_pairs(monkeypatch, distances, swapped):
    features, labels = rows(seed=3 + swapped)
    negatives = {}

    def noted(weights, generator=None):
        negatives["drawn"] = draw_negatives(weights, generator)
        return negatives["drawn"]

    monkeypatch.setattr("icckd.methods.triplets.draw_negatives", noted)
    features.requires_grad_()
    found = triplet_loss(features, labels, margin=0.2, distances=distances, swapped=swapped)
    (gradient,) = torch.autograd.grad(found, features)
    expected = loss_by_hand(features, labels, negatives["drawn"], distances, swapped)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, *torch.autograd.grad(expected, features))
    assert gradient.abs().sum() > 0


def loss_by_hand(features, labels, negatives, distances, swapped):
    weights = weights_by_hand(features.detach(), labels, distances)
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for a in range(len(labels)):
        if not any(weights[a]):
            continue
        for p in range(len(labels)):
            if p == a or labels[p] != labels[a]:
                continue
            n = int(negatives[a, p])
            assert weights[a][n] > 0
            anchor, positive, negative = (features[i] / features[i].norm() for i in (a, p, n))
            if swapped:
                positive, negative = negative, positive
            term = (anchor - positive).norm() - (anchor - negative).norm() + 0.2
            total, pairs = total + term.clamp(min=0), pairs + 1
    return total / pairs


def test_an_anchor_without_a_negative_adds_nothing():
    # The first three rows are one label and lie together; the fourth is opposite to them: at no admissible distance.
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]], requires_grad=True)
    loss = triplet_loss(features, torch.tensor([0, 0, 0, 1]), margin=0.2, distances=CLAMPED)
    loss.backward()
    assert loss.item() == 0
    assert features.grad.tolist() == [[0, 0]] * 4


def test_rows_of_one_label_and_equal_rows_have_a_finite_gradient():
    for labels in ([0, 0, 0, 0], [0, 0, 1, 1]):
        features = torch.ones(4, 3, requires_grad=True)
        loss = triplet_loss(features, torch.tensor(labels), margin=0.2, distances=CLAMPED)
        loss.backward()
        assert loss.isfinite()
        assert features.grad.isfinite().all()


def test_the_same_generator_draws_the_same():
    features, labels = rows(seed=8)
    losses = [
        triplet_loss(features, labels, margin=0.2, distances=CLAMPED, generator=torch.Generator().manual_seed(seed))
        for seed in (4, 4, 5)
    ]
    assert losses[0] == losses[1] != losses[2]
