"""Rows that travel each to one rank, and back."""

import numpy as np
import torch

from icckd.exchange.route import Route


class Trip:
    """Rows of all ranks, each with a destination, −1 of those that stay."""

    def __init__(self, here, counts, seed=0):
        generator = np.random.default_rng(seed)
        self.here, self.counts = here, counts
        source = np.repeat(np.arange(here.size), counts)
        self.destinations = generator.integers(-1, here.size, len(source))
        travelling = np.zeros((here.size, here.size), np.int64)
        moves = self.destinations >= 0
        np.add.at(travelling, (source[moves], self.destinations[moves]), 1)
        own = self.destinations[source == here.rank]
        self.route = Route(here.group, here.rank, own, travelling, torch.device("cpu"))
        self.moves = torch.from_numpy(own >= 0)
        self.arriving = torch.from_numpy(np.flatnonzero(self.destinations == here.rank))

    def own(self, x):
        return x.split(self.counts)[self.here.rank]


def check_rows_of_any_dtype_arrive_in_line(here, counts):
    trip = Trip(here, counts)
    generator, total = torch.Generator().manual_seed(1), sum(counts)
    rows = [
        torch.randn(total, 3, generator=generator).bfloat16(),
        torch.rand(total, generator=generator) < 0.5,
        torch.randn(total, 5, 2, generator=generator, dtype=torch.float64),
        torch.randint(-(2**62), 2**62, (total,), generator=generator),
        torch.full((total, 1), torch.nan),
        torch.randint(0, 255, (total, 3), generator=generator).to(torch.uint8),
    ]
    with torch.no_grad():
        arrived = trip.route.there(*map(trip.own, rows))
        home = trip.route.back(*arrived)
    for x, y, z in zip(rows, arrived, home, strict=True):
        assert y.dtype == x.dtype
        torch.testing.assert_close(y, x[trip.arriving], rtol=0, atol=0, equal_nan=True)
        expected = trip.own(x).clone()
        expected[~trip.moves] = 0
        torch.testing.assert_close(z, expected, rtol=0, atol=0, equal_nan=True)


def check_each_way_is_the_derivative_of_the_other(here, counts):
    trip = Trip(here, counts, seed=2)
    generator, total = torch.Generator().manual_seed(3), sum(counts)
    x, weight = torch.randn(2, total, 4, generator=generator, dtype=torch.float64)
    own, number = trip.own(x).clone().requires_grad_(), torch.arange(total)
    arrived, numbers = trip.route.there(own, constants=[trip.own(number)])
    assert torch.equal(numbers, number[trip.arriving])
    assert not numbers.requires_grad
    (home,) = trip.route.back(arrived * weight[trip.arriving])
    (home,) = trip.route.back(*trip.route.there(home * home))
    (gradient,) = torch.autograd.grad(home.sum(), own, create_graph=True)
    moves, weight = trip.moves.unsqueeze(1), trip.own(weight)
    torch.testing.assert_close(gradient, torch.where(moves, 2 * own * weight**2, 0))
    (second,) = torch.autograd.grad(gradient.sum(), own)
    torch.testing.assert_close(second, torch.where(moves, 2 * weight**2, 0))


def every_check(here):
    for counts in ([9, 0, 14, 5], [0, 0, 0, 0], [0, 11, 0, 0]):
        check_rows_of_any_dtype_arrive_in_line(here, counts[: here.size])
        check_each_way_is_the_derivative_of_the_other(here, counts[: here.size])
