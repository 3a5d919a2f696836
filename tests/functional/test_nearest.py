"""The nearest rows of the same class, against all cosines at once."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from icckd.functional import nearest
from icckd.functional.nearest import nearest_of_class


def expected(queries, of, rows, labels, own, count):
    """One query after another."""
    found = []
    for query, label, place in zip(queries.double(), of.tolist(), own.tolist(), strict=True):
        cosine = cosine_similarity(query[None], rows.double())
        others = [j for j in range(len(rows)) if labels[j] == label and j != place]
        others = sorted(others, key=lambda j: -cosine[j].item())[:count]
        found.append(others + [place] * (count - len(others)))
    return found


@pytest.mark.parametrize("count", [1, 3, 60])
@pytest.mark.parametrize("at_once", [1, 200, 2**24])
def test_it_finds_what_all_cosines_tell(generator, monkeypatch, count, at_once):
    monkeypatch.setattr(nearest, "_AT_ONCE", at_once)
    rows = torch.randn(53, 5, generator=generator) * torch.rand(53, 1, generator=generator)
    labels = torch.randint(-1, 9, (53,), generator=generator)
    labels[7] = 40  # Alone in its class.
    own = torch.arange(10, 47)
    queries = torch.randn(37, 5, generator=generator)
    found = nearest_of_class(queries, labels[own], rows, labels, own, count)
    assert found.tolist() == expected(queries, labels[own], rows, labels, own, count)


def test_no_rows_have_no_neighbours():
    nothing, places = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    assert nearest_of_class(nothing, places, nothing, places, places, 2).shape == (0, 2)


def test_the_choice_has_no_gradient(generator):
    rows = torch.randn(9, 4, generator=generator).requires_grad_()
    labels = torch.zeros(9, dtype=torch.int64)
    assert not nearest_of_class(rows, labels, rows, labels, torch.arange(9), 2).requires_grad
