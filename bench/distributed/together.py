"""What the processes do together: a place for each, a clock for all, and what all of them have in common."""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from icckd.bench import measure
from icckd.bench.measure import Row
from icckd.bench.peers import Inputs


@dataclass(frozen=True)
class Place:
    """Where a process is among those of a group."""

    rank: int
    world: int
    device: torch.device
    group: dist.ProcessGroup

    def own(self, batch: Inputs) -> Inputs:
        """This rank's rows, as leaves."""
        rows = len(batch.labels) // self.world
        part = slice(self.rank * rows, (self.rank + 1) * rows)
        anchor, positive = (x[part].clone().requires_grad_() for x in (batch.anchor, batch.positive))
        return Inputs(anchor, positive, batch.labels[part], batch.gate[part], batch.classes)


class Together(measure.HostClock):
    """A clock for calls that all ranks make: seconds of the slowest, so that all ranks decide alike on how often."""

    def __init__(self, place: Place) -> None:
        self.place, self.clock = place, measure.clock(place.device)
        self.shortest = self.clock.shortest

    def seconds(self, contender: measure.Contender, first: int, calls: int = 1) -> float:
        dist.barrier(group=self.place.group)
        return most(self.place, self.clock.seconds(contender, first, calls))


def conditions(place: Place) -> Row:
    """What a number was measured on; the cores are all that the processes of this machine have together."""
    return {**measure.conditions(place.device), "cores": os.cpu_count()}


def most(place: Place, value: float) -> float:
    """The largest of all ranks' values."""
    return _reduced(place, value, dist.ReduceOp.MAX)


def total(place: Place, value: float) -> float:
    """The sum of all ranks' values."""
    return _reduced(place, value, dist.ReduceOp.SUM)


def _reduced(place: Place, value: float, operation: Any) -> float:
    number = torch.tensor(value, dtype=torch.float64, device=place.device)
    dist.all_reduce(number, operation, group=place.group)
    return number.item()
