"""Agreement of neighbours, beside a loop over images and what is known."""

import math

import pytest
import torch

from icckd.experiment.evaluation import Predictions
from icckd.experiment.relations import neighbour_agreement


def predictions(features, labels):
    return Predictions(features, torch.zeros(len(labels), 3), labels)


def problem(seed, sizes=(30, 9, 14), dim=8):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    return torch.randn(len(labels), dim, generator=generator), labels[torch.randperm(len(labels), generator=generator)]


def by_hand(ours, theirs, labels):
    shares, chances = [], []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        if len(others) <= 5:
            continue
        nearest = [
            set(sorted(others, key=lambda j: -torch.cosine_similarity(x[i], x[j], dim=0).item())[:5])
            for x in (ours.double(), theirs.double())
        ]
        shares.append(len(nearest[0] & nearest[1]) / 5)
        chances.append(5 / len(others))
    share, chance = sum(shares) / len(shares), sum(chances) / len(chances)
    return (share - chance) / (1 - chance)


def test_it_is_that_of_a_loop_over_images():
    ours, labels = problem(1, (30, 9, 14, 4))
    theirs = ours + 0.7 * torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    found = neighbour_agreement(predictions(ours, labels), predictions(theirs, labels))
    assert found == pytest.approx(by_hand(ours, theirs, labels), abs=1e-12)
    assert 0.1 < found < 0.9


def test_turned_and_scaled_features_agree_wholly():
    ours, labels = problem(3)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(4))).Q
    scales = torch.rand(len(labels), 1, generator=torch.Generator().manual_seed(5)) + 0.1
    theirs = 100 * scales * (ours @ turn)
    assert neighbour_agreement(predictions(ours, labels), predictions(theirs, labels)) == pytest.approx(1)


def test_unrelated_features_agree_as_by_chance():
    ours, labels = problem(6, (400, 300))
    theirs = torch.randn(ours.shape, generator=torch.Generator().manual_seed(7))
    assert neighbour_agreement(predictions(ours, labels), predictions(theirs, labels)) == pytest.approx(0, abs=0.02)


def test_small_classes_and_numbers_that_are_not_finite_have_none():
    ours, labels = problem(8, (6, 3))
    assert math.isnan(neighbour_agreement(predictions(ours, labels), predictions(ours, labels)))
    ours, labels = problem(9)
    spoilt = ours.clone()
    spoilt[0, 0] = torch.nan
    assert math.isnan(neighbour_agreement(predictions(ours, labels), predictions(spoilt, labels)))
