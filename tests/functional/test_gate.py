"""Which rows are anchors, by margins."""

import pytest
import torch

from icckd.functional.gate import most_confident, soft_gate


@pytest.mark.parametrize(("share", "chosen"), [(0.5, 4), (0.1, 1), (0.05, 0), (1.0, 7), (0.3, 2)])
def test_the_most_confident_labelled_rows_are_chosen(generator, share, chosen):
    margin = torch.randn(9, generator=generator)
    labelled = torch.ones(9, dtype=torch.bool)
    labelled[margin.argsort(descending=True)[[0, 4]]] = False
    best = [i for i in margin.argsort(descending=True).tolist() if labelled[i]][:chosen]
    assert most_confident(margin, labelled, share).nonzero()[:, 0].tolist() == sorted(best)


def test_of_equal_margins_the_first_are_chosen():
    margin, labelled = torch.tensor([0.5, 0.5, 0.9, 0.5]), torch.tensor([True] * 4)
    assert most_confident(margin, labelled, 0.5).tolist() == [True, False, True, False]
    assert most_confident(margin[:0], labelled[:0], 0.5).tolist() == []


def test_a_soft_gate_rises_around_the_threshold():
    margin, labelled = torch.tensor([0.3, 0.4, 0.1, 0.9]), torch.tensor([True, True, True, False])
    expected = torch.tensor([0.5, 1 / (1 + 2.718281828**-1), 1 / (1 + 2.718281828**2), 0])
    torch.testing.assert_close(soft_gate(margin, labelled, 0.3, 0.1), expected)
    narrow = soft_gate(margin, labelled, 0.3, 1e-4)
    torch.testing.assert_close(narrow[1:], torch.tensor([1.0, 0.0, 0.0]))


def test_a_margin_that_is_no_number_makes_no_anchor():
    margin, labelled = torch.tensor([torch.nan, 0.4, 1.0, torch.inf]), torch.tensor([True] * 4)
    found = soft_gate(margin, labelled, 1.0, 1e-300)  # A width that is 0 in float32.
    assert found.tolist() == [0, 0, 0, 1]
