"""What soft labels tell of a hidden factor, where the answer is known."""

import math

import pytest
import torch

from icckd.experiment.information import conditional_information


def labels(count=4000, fine=6, coarse=2):
    fine_of = torch.arange(count) % fine
    return fine_of, fine_of % coarse


def test_rows_that_name_the_fine_class_tell_all_of_it():
    fine, coarse = labels()
    rows = torch.nn.functional.one_hot(fine, 6).double() * 20
    assert conditional_information(rows, fine, coarse) == pytest.approx(math.log(3), abs=0.01)


def test_rows_that_know_the_coarse_class_alone_tell_nothing():
    fine, coarse = labels()
    generator = torch.Generator().manual_seed(3)
    rows = torch.nn.functional.one_hot(coarse, 2) + torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    assert conditional_information(rows, fine, coarse) == pytest.approx(0, abs=0.01)


def test_a_bit_of_the_factor_is_as_much_as_it_is():
    """Of four fine classes in a coarse one rows tell which pair it is, by numbers of any size: ln 2."""
    fine = torch.arange(4000) % 8
    coarse, pair = fine % 2, (fine // 4).double()
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    rows = torch.cat([1e-3 * (pair[:, None] + 0.02 * noise[:, :1]) - 7, 1e4 * noise[:, 1:]], dim=1)
    assert conditional_information(rows, fine, coarse) == pytest.approx(math.log(2), abs=0.02)


def test_it_is_a_bound_for_gaussians_and_near_the_truth():
    """Two fine classes, unit Gaussians at ±1: I = ln 2 − E ln(1 + exp(−2 x)) over x from N(1, 1), by quadrature."""
    generator = torch.Generator().manual_seed(5)
    fine = torch.arange(20_000) % 2
    rows = (2.0 * fine - 1 + torch.randn(20_000, generator=generator)).unsqueeze(1)
    x = torch.linspace(-9, 11, 20_001, dtype=torch.float64)
    density = torch.exp(-((x - 1) ** 2) / 2) / math.sqrt(2 * math.pi)
    truth = math.log(2) - torch.trapezoid(density * torch.log1p(torch.exp(-2 * x)), x).item()
    assert conditional_information(rows, fine, torch.zeros_like(fine)) == pytest.approx(truth, abs=0.02)


def test_classes_without_a_choice_tell_nothing_and_count():
    fine, coarse = labels(1000)
    rows = torch.nn.functional.one_hot(fine, 7).double() * 20
    whole = conditional_information(rows, fine, coarse)
    alone = torch.cat([fine, torch.full((1000,), 6)]), torch.cat([coarse, torch.full((1000,), 2)])
    assert conditional_information(rows.repeat(2, 1), *alone) == pytest.approx(whole / 2, rel=1e-9)
    single = torch.cat([fine, torch.tensor([6])]), torch.cat([coarse, torch.tensor([0])])
    assert conditional_information(rows[[*range(1000), 0]], *single) == pytest.approx(whole * 1000 / 1001, rel=1e-9)


def test_of_rows_that_are_not_finite_nothing_is_known():
    fine, coarse = labels(60)
    rows = torch.ones(60, 2, dtype=torch.float64)
    assert conditional_information(rows, fine, coarse) == pytest.approx(0, abs=1e-6)
    rows[4, 1] = torch.inf
    assert math.isnan(conditional_information(rows, fine, coarse))


def test_a_row_far_from_all_others_costs_what_it_costs_and_no_more():
    fine = torch.arange(40) % 2
    rows = torch.where(fine == 1, 1e-3, 0.0)[:, None].double()
    found = conditional_information(rows, fine, fine * 0)
    for far in (-10.0, -1000.0):
        rows[5] = far  # Of the class of larger rows.
        found, before = conditional_information(rows, fine, fine * 0), found
        assert -math.inf < found < before
