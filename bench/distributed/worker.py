"""What each process of `bench.distributed` does: check, count and time every contender, all in the same order."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.distributed.cases import LOCAL, Exact, Loss, Place, Shape, contenders, step
from bench.distributed.traffic import Loopback, Traffic
from icckd.bench import measure
from icckd.bench.accuracy import WRONG
from icckd.bench.measure import Row
from icckd.bench.output import write_rows_json
from icckd.bench.peers import Inputs

INPUT_SETS = 3


def work(rank: int, world: int, device: str, shapes: list[Shape], seconds: float, folder: Path) -> None:
    """Measure as rank `rank` of `world`; rank 0 writes the rows to `folder`/rows.json."""
    torch.set_num_threads(1)
    kind = torch.device(device) if device == "cpu" else torch.device(device, rank)
    if kind.type == "cuda":
        torch.cuda.set_device(kind)
    backend = "gloo" if kind.type == "cpu" else "nccl"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=world)
    assert dist.group.WORLD is not None
    place = Place(rank, world, kind, dist.group.WORLD)
    try:
        rows = [row for shape in shapes for row in measure_shape(shape, place, seconds)]
        if rank == 0:
            write_rows_json(folder / "rows.json", rows)
    finally:
        dist.destroy_process_group()


class Together(measure.HostClock):
    """A clock for calls that all ranks make: seconds of the slowest, so that all ranks decide alike on how often."""

    def __init__(self, place: Place) -> None:
        self.place, self.clock = place, measure.clock(place.device)
        self.shortest = self.clock.shortest

    def seconds(self, contender: measure.Contender, first: int, calls: int = 1) -> float:
        dist.barrier(group=self.place.group)
        return most(self.place, self.clock.seconds(contender, first, calls))


def measure_shape(shape: Shape, place: Place, seconds: float) -> Iterator[Row]:
    """A row for each contender, the same on every rank."""
    batches = [shape.batch(place.world, seed, place.device) for seed in range(INPUT_SETS)]
    inputs = [place.own(batch) for batch in batches]
    # Each knows the labels of its batch, by the same number as the inputs.
    losses = [contenders(place, batch) for batch in batches]
    exact = Exact.of(batches[0], place)
    rows: dict[str, Row] = {}
    for name, loss in losses[0].items():
        checked = name != LOCAL or place.world == 1
        errors = exact.errors(loss, inputs[0], place) if checked else (None, None)
        if checked and not max(error for error in errors if error is not None) <= WRONG["float32"]:
            raise RuntimeError(
                f"{name} is wrong with {place.world} ranks, {shape.name}: {errors[0]:.1e}, {errors[1]:.1e}"
            )
        rows[name] = {
            "benchmark": "distributed",
            "part": "exchange",
            "contender": name,
            "processes": place.world,
            **shape.described,
            **traffic(loss, inputs[0], place),
            "loss_error": errors[0],
            "gradient_error": errors[1],
            "peak_bytes": measure.clock(place.device).peak_bytes(lambda loss=loss: step(loss, inputs[0])),
        }
    calls: dict[str, measure.Contender] = {
        name: lambda k, name=name: step(losses[k % INPUT_SETS][name], inputs[k % INPUT_SETS]) for name in rows
    }
    times = measure.interleaved(calls, Together(place), seconds, too_slow=float("inf"), least=5)
    conditions = {**measure.conditions(place.device), "cores": os.cpu_count()}
    for name, row in rows.items():
        yield {**row, **measure.quantiles(times[name]), **conditions}


def traffic(loss: Loss, x: Inputs, place: Place) -> Row:
    """Bytes that a rank sends in one forward and backward: of the rank that sends most, on average, and by the kernel.

    messages: Those of the rank that sends most.
    """
    step(loss, x)
    dist.barrier(group=place.group)
    loopback = Loopback()
    loopback.start()
    with Traffic(place.rank, place.world) as counted:
        step(loss, x)
    dist.barrier(group=place.group)
    by_kernel = most(place, loopback.since()) / place.world if place.device.type == "cpu" else None
    return {
        "sent_bytes": most(place, counted.sent),
        "sent_mean_bytes": total(place, counted.sent) / place.world,
        "messages": most(place, counted.messages),
        "loopback_bytes": by_kernel,
    }


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
