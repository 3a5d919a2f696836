"""The loss with its exchange, forward and backward: error, bytes, time."""

from collections.abc import Iterator

import torch.distributed as dist

from bench.distributed import model
from bench.distributed.cases import LOCAL, Exact, Loss, Shape, contenders, step
from bench.distributed.together import Place, Together, conditions, most, total
from bench.distributed.traffic import Loopback, Traffic
from icckd.bench import measure
from icckd.bench.accuracy import WRONG
from icckd.bench.measure import Row
from icckd.bench.peers import Inputs

INPUT_SETS = 2


def measure_exchange(shape: Shape, place: Place, seconds: float) -> Iterator[Row]:
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
            "predicted_bytes": _predicted(name, shape, place),
            "loss_error": errors[0],
            "gradient_error": errors[1],
            "peak_bytes": measure.clock(place.device).peak_bytes(lambda loss=loss: step(loss, inputs[0])),
        }
    calls: dict[str, measure.Contender] = {
        name: lambda k, name=name: step(losses[k % INPUT_SETS][name], inputs[k % INPUT_SETS]) for name in rows
    }
    times = measure.interleaved(calls, Together(place), seconds, too_slow=float("inf"), least=5)
    for name, row in rows.items():
        yield {**row, **measure.quantiles(times[name]), **conditions(place)}


def _predicted(name: str, shape: Shape, place: Place) -> float | None:
    """What the model says of the bytes that a rank sends on average; None where nothing is exchanged."""
    if name not in model.STRATEGIES:
        return None
    batch = model.Batch(place.world, shape.rows, shape.classes, shape.dim, dominating=shape.dominating)
    return model.sent_bytes(name, batch)


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
