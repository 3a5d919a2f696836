"""The time of every contender of a case beside the floor's, with gradients, and that of our loss alone.

Each is compared with float64 first; a wrong one is not timed. Contenders take turns (`icckd.bench.measure`).
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from icckd.bench import measure
from icckd.bench.accuracy import exact_results, screen
from icckd.bench.case import Case, Contender, forward, release, step, with_leaves
from icckd.bench.floor import floor_calls, floor_of
from icckd.bench.measure import Row

# Our backends that can compute tensors of a device.
OWN = {"cpu": ("cpu", "reference"), "cuda": ("triton", "cuda", "reference")}
INPUT_SETS = 3
# Seconds of a peer's call that are too many, and of all its calls that the least number of calls may take.
_TOO_SLOW, _PATIENCE = 5.0, 2.0


def everybody(case: Case, device: torch.device) -> list[Contender]:
    """Our backends, PyTorch's ways eager and compiled, and the peers of other packages."""
    peers = [*case.peers(device, host_compiler="inductor"), *case.packaged_peers(device)]
    return [*case.own(device, OWN[device.type]), *(peer for peer in peers if peer.only_on in (None, device.type))]


def measure_case(
    case: Case,
    contenders: list[Contender],
    device: torch.device,
    seconds: float,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """A row for each contender with gradients, for ours alone, and for each that is not timed, with the reason.

    `tell` is told what is being done.
    """
    torch._dynamo.reset()
    timer = measure.clock(device)
    common = {"family": case.family, "case": case.name, **case.sizes, "dtype": case.dtype}
    common |= measure.conditions(device)
    tell("the result in float64")
    exact = exact_results(case, device)
    usable: list[Contender] = []
    left_out: dict[str, str] = {}
    error_of: dict[str, float | None] = {}
    for contender in contenders:
        tell(f"checking {contender.name}")
        start = time.perf_counter()
        why_not, error_of[contender.name] = screen(case, contender, device, timer, exact)
        taken = time.perf_counter() - start
        if why_not is None and contender.is_peer and not contender.compiles and taken > _TOO_SLOW:
            why_not = f"one call takes {taken:.0f} s"
        if why_not is None:
            usable.append(contender)
        else:
            left_out[contender.name] = why_not
    del exact
    release(device)
    tell("measuring")
    times = _times(case, usable, device, timer, seconds)
    floors = {name: measure.quantiles(values)["median_ms"] for name, values in times["floor"].items()}
    rows = []
    for mode in ("step", "forward"):
        floor_ms, kind = floor_of(case, floors, backward=mode == "step")
        for row in timing_rows(common, usable, mode, times[mode], floor_ms):
            rows.append({**row, "floor": kind, "error": error_of[row["contender"]]})
    timed = {row["contender"] for row in rows}
    left_out |= {c.name: f"one call takes over {_TOO_SLOW:.0f} s" for c in usable if c.name not in timed}
    nobody = [c for c in contenders if c.name in left_out]
    return rows + [
        {**common, "contender": c.name, "is_peer": c.is_peer, "why_not": left_out[c.name], "error": error_of[c.name]}
        for c in nobody
    ]


def timing_rows(
    common: Row, usable: list[Contender], mode: str, times: dict[str, list[float]], floor_ms: float | None
) -> Iterator[Row]:
    """A row for each contender that was timed: its time, and what that is beside the floor and the best peer."""
    measured = {name: measure.quantiles(values) for name, values in times.items()}
    peers = [measured[c.name]["median_ms"] for c in usable if c.is_peer and c.checked and c.name in measured]
    for contender in usable:
        if contender.name not in measured:
            continue
        milliseconds = measured[contender.name]["median_ms"]
        yield {
            **common,
            "contender": contender.name,
            "is_peer": contender.is_peer,
            "mode": mode,
            **measured[contender.name],
            "floor_ms": floor_ms,
            "fraction_of_floor": None if floor_ms is None else floor_ms / milliseconds,
            "times_faster_than_best_peer": min(peers) / milliseconds if peers else None,
        }


def _times(
    case: Case, usable: list[Contender], device: torch.device, timer: measure.Clock, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Seconds per call by mode, "floor" among them, and contender; all in the same rounds."""
    inputs = [with_leaves(case, case.inputs(seed, device)) for seed in range(INPUT_SETS)]
    calls = {("step", contender.name): _step(case, contender, inputs) for contender in usable}
    calls |= {("forward", contender.name): _forward(contender, inputs) for contender in usable if not contender.is_peer}
    calls |= {("floor", name): call for name, call in floor_calls(case, device).items()}
    times = measure.interleaved(calls, timer, seconds, _TOO_SLOW, patience=_PATIENCE, tell=lambda _: None)
    by_mode: dict[str, dict[str, list[float]]] = {"step": {}, "forward": {}, "floor": {}}
    for (mode, name), values in times.items():
        by_mode[mode][name] = values
    return by_mode


def _step(case: Case, contender: Contender, inputs: list[Any]) -> measure.Contender:
    return lambda k: step(case, contender.function, inputs[k % len(inputs)])


def _forward(contender: Contender, inputs: list[Any]) -> measure.Contender:
    return lambda k: forward(contender.function, inputs[k % len(inputs)])
