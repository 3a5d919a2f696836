"""Every image is one client's, and the concentration says how classes are spread."""

import pytest
import torch

from icckd.errors import UserError
from icckd.procedures.federated.partition import partition


def labels_of(generator, count=600, classes=6):
    return torch.randint(0, classes, (count,), generator=generator)


@pytest.mark.parametrize(("clients", "concentration"), [(1, 0.5), (3, 0.01), (7, 0.5), (40, 0.05), (300, 0.1)])
def test_every_image_is_one_client_s_and_each_has_two(generator, clients, concentration):
    labels = labels_of(generator)
    parts = partition(labels, clients, concentration, seed=3)
    assert len(parts) == clients
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    assert min(len(part) for part in parts) >= 2
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)


def test_the_seed_decides(generator):
    labels = labels_of(generator)
    first, again, other = (partition(labels, 4, 0.5, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_small_concentration_leaves_a_class_to_few(generator):
    labels = labels_of(generator)

    def largest_share(concentration):
        shares = []
        for seed in range(5):
            parts = partition(labels, 4, concentration, seed)
            for label in range(6):
                counts = [int((labels[part] == label).sum()) for part in parts]
                shares.append(max(counts) / sum(counts))
        return sum(shares) / len(shares)

    assert largest_share(0.05) > 0.85
    assert largest_share(1e4) < 0.27


def test_more_clients_than_pairs_of_images_are_refused(generator):
    with pytest.raises(UserError, match=r"federated\.clients is 301; there are 600 .* give 300 clients at most"):
        partition(labels_of(generator), 301, 0.5, 0)
