"""The time of every contender of a case: forward only and with gradients, as launched and replayed from a CUDA graph.

Each is compared with float64 first; a wrong one is not timed. Contenders take turns (`icckd.bench.measure`). A row
gives the fraction of the floor that a contender reaches, and its time over that of the best peer in the same run.
"""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from bench.gpu.ceilings import Ceilings
from icckd.bench import measure
from icckd.bench.accuracy import exact_results, screen
from icckd.bench.case import Case, Contender, forward, release, step, with_leaves
from icckd.bench.measure import Clock, Row
from icckd.bench.speed import INPUT_SETS, timing_rows

Mark = Callable[[str | None], None]
# Calls shorter than this are replayed from a graph too: there launching takes a good part of the time.
_LAUNCH_BOUND = 5e-3
# Seconds of a call that are too many, and of all calls of a contender that the least number of calls may take.
_TOO_SLOW, _PATIENCE = 2.0, 2.0


def measure_case(
    case: Case,
    contenders: list[Contender],
    device: torch.device,
    ceilings: Ceilings,
    seconds: float,
    least: int,
    mark: Mark,
) -> Iterator[list[Row]]:
    """A row for each contender, with or without gradients, launched or replayed; or for why there is none.

    `mark` is told who is in hand, None where it is all of them.
    """
    print(f"\n{case.name}", flush=True)
    torch._dynamo.reset()
    timer = measure.clock(device)
    common = {"stage": "speed", "family": case.family, "case": case.name, **case.sizes, "dtype": case.dtype}
    common |= measure.conditions(device)
    usable: list[Contender] = []
    error_of: dict[str, float | None] = {}
    exact = exact_results(case, device)
    for contender in contenders:
        mark(contender.name)
        why_not, error = screen(case, contender, device, timer, exact)
        error_of[contender.name] = error
        if why_not is None:
            usable.append(contender)
            continue
        print(f"    {contender.name:<34}{why_not}", flush=True)
        row = {**common, "contender": contender.name, "is_peer": contender.is_peer}
        yield [{**row, "why_not": why_not, "error": error}]
    mark(None)
    del exact
    release(device)
    inputs = [with_leaves(case, case.inputs(seed, device)) for seed in range(INPUT_SETS)]
    for mode, times, peaks in _timed(case, usable, inputs, timer, seconds, least, mark):
        yield list(_rows(case, common, ceilings, usable, error_of, mode, times, peaks))


def _timed(
    case: Case, usable: list[Contender], inputs: list[Any], timer: Clock, seconds: float, least: int, mark: Mark
) -> Iterator[tuple[str, dict[str, list[float]], dict[str, int | None]]]:
    """What was measured ("forward", "step", "step, graph"), times and peak memory by contender."""
    whole = "step" if case.differentiated else "forward"
    for mode in dict.fromkeys(("forward", whole)):
        calls = {contender.name: _call(case, contender, mode, inputs) for contender in usable}
        peaks = {}
        for name, call in calls.items():
            mark(name)
            peaks[name] = timer.peak_bytes(lambda call=call: call(0))
        mark(None)
        times = measure.interleaved(calls, timer, seconds, _TOO_SLOW, least, _PATIENCE)
        yield mode, times, peaks
        if mode != whole:
            continue
        captured = {}
        for contender in usable:
            if contender.capturable and median(times.get(contender.name, [_TOO_SLOW])) < _LAUNCH_BOUND:
                mark(contender.name)
                try:
                    captured[contender.name] = timer.captured(calls[contender.name], len(inputs))
                except RuntimeError as error:
                    if not timer.is_usable():
                        raise
                    print(f"    {contender.name:<34}cannot be captured: {str(error).splitlines()[0]}", flush=True)
        mark(None)
        yield f"{mode}, graph", measure.interleaved(captured, timer, seconds, _TOO_SLOW, least), {}


def _call(case: Case, contender: Contender, mode: str, inputs: list[Any]) -> measure.Contender:
    function = contender.function
    if mode == "forward":
        return lambda k: forward(function, inputs[k % len(inputs)])
    return lambda k: step(case, function, inputs[k % len(inputs)])


def _rows(
    case: Case,
    common: Row,
    ceilings: Ceilings,
    usable: list[Contender],
    error_of: dict[str, float | None],
    mode: str,
    times: dict[str, list[float]],
    peaks: dict[str, int | None],
) -> Iterator[Row]:
    work = case.work(mode.startswith("step"))
    floor = ceilings.floor(work.bytes, work.flop, case.dtype)
    floor_ms = None if floor is None else 1e3 * floor
    for row in timing_rows(common, usable, mode, times, floor_ms):
        name, milliseconds = row["contender"], row["median_ms"]
        row |= {
            "error": error_of[name],
            "peak_bytes": peaks.get(name),
            "fraction_of_bandwidth": _fraction(work.bytes, ceilings.bandwidth, milliseconds),
            "fraction_of_matrix_rate": _fraction(work.flop, ceilings.rates.get(case.dtype), milliseconds),
            "ceilings_assumed": ceilings.assumed,
        }
        share = "" if floor is None else f"{row['fraction_of_floor']:.2f} of the floor"
        measure.print_row({**row, "contender": f"{name}, {mode}"}, share)
        yield row


def _fraction(work: int | None, ceiling: float | None, milliseconds: float) -> float | None:
    return None if work is None or ceiling is None else work / ceiling / milliseconds * 1e3
