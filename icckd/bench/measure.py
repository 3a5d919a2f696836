"""How everything here is timed: interleaved, on rotating inputs; medians, quantiles, and what they were measured on.

Contenders take turns within each round and the order rotates from round to round, so that whatever else the machine
does meets all of them. A contender that needs seconds a call gets fewer rounds; one beyond `too_slow` is left out, and
said so. A clock times calls in the way of its device: wall time on a CPU, events between them on a GPU.
"""

import datetime
import os
import subprocess
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

from icckd.environment import processor, versions

Row = dict[str, Any]
# Works on the k-th of several inputs.
Contender = Callable[[int], Any]
# Calls shorter than so many times what a clock can tell well are looked at twice before they are timed.
_SHORT = 30
_Name = TypeVar("_Name")
# The folder that the package is in: the repository, or where packages are installed.
_ROOT = Path(__file__).parents[2]
_PEERS = ("triton", "pykeops", "pytorch-metric-learning")


class HostClock:
    """Wall time, for calls that end when they return: those of a CPU."""

    shortest = 0.0

    def seconds(self, contender: Contender, first: int, calls: int = 1) -> float:
        """Seconds per call of `contender(first)` … `contender(first + calls − 1)`."""
        start = time.perf_counter()
        for k in range(first, first + calls):
            contender(k)
        return (time.perf_counter() - start) / calls

    def captured(self, contender: Contender, inputs: int) -> Contender:
        """The same work without the time that launching it takes: here the contender itself."""
        return contender

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        """The most memory that a call takes beyond what is there; None where that cannot be told."""
        call()
        return None

    def is_usable(self) -> bool:
        """Whether the device still works after an error."""
        return True


class DeviceClock:
    """Time between two events on a CUDA device."""

    # Events are half a microsecond apart at best: short calls are timed several together.
    shortest = 3e-4

    def seconds(self, contender: Contender, first: int, calls: int = 1) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for k in range(first, first + calls):
            contender(k)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls

    def captured(self, contender: Contender, inputs: int) -> Contender:
        """Replays of CUDA graphs, one for each of so many inputs. Raises RuntimeError where it synchronises."""
        # Seen before anything is captured: a capture that fails leaves allocator and random numbers in disorder.
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            contender(0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for k in range(inputs):
                contender(k)
        torch.cuda.current_stream().wait_stream(side)
        graphs: list[torch.cuda.CUDAGraph] = []
        for k in range(inputs):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None):
                contender(k)
            graphs.append(graph)
        return lambda k: graphs[k % inputs].replay()

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def is_usable(self) -> bool:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return False
        return True


Clock = HostClock | DeviceClock


def clock(device: torch.device) -> Clock:
    """How calls on `device` are timed."""
    return DeviceClock() if device.type == "cuda" else HostClock()


def interleaved(
    contenders: dict[_Name, Contender],
    timer: Clock,
    seconds: float,
    too_slow: float = 20.0,
    least: int = 3,
    patience: float = float("inf"),
    tell: Callable[[str], object] = print,
) -> dict[_Name, list[float]]:
    """Seconds per call of each contender, measured for about `seconds` each.

    At least so many times, twice or more where that would take over `patience` seconds. A contender whose first timed
    call takes over `too_slow` seconds is not in the result, and `tell` is told.
    """
    times: dict[_Name, list[float]] = {}
    rounds, together = {}, {}
    for name, contender in contenders.items():
        contender(0)
        once = timer.seconds(contender, 0)
        if once > too_slow:
            tell(f"    {name}: left out, one call takes {once:.0f} s")
            continue
        if once < _SHORT * timer.shortest:
            # The first calls find a device that has slowed down for want of work.
            once = min(once, timer.seconds(contender, 0, 5))
        times[name] = []
        together[name] = max(1, int(timer.shortest / once))
        enough = least if least * once <= patience else min(2, least)
        rounds[name] = min(200, max(enough, int(seconds / (once * together[name]))))
    for k in range(max(rounds.values(), default=0)):
        names = [name for name in times if k < rounds[name]]
        shift = k % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(timer.seconds(contenders[name], k * together[name], together[name]))
    return times


def quantiles(seconds: list[float]) -> Row:
    """Median and 20/80 quantiles in milliseconds."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1e3
    low, median, high = torch.quantile(values, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return {"median_ms": median, "q20_ms": low, "q80_ms": high, "calls": len(seconds)}


def conditions(device: torch.device) -> Row:
    """What a number was measured on, for every row."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"device": device.type, "processor": name, "threads": torch.get_num_threads(), **provenance()}


def provenance() -> Row:
    """Which code a result comes from, and when."""
    return {
        **versions(),
        **{package: _version(package) for package in _PEERS},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def print_row(row: Row, *more: str) -> None:
    """One measured row of a table, on standard output."""
    spread = f"{row['q20_ms']:.3f}–{row['q80_ms']:.3f}"
    print(f"    {row['contender']:<42}{row['median_ms']:>10.3f} ms  ({spread})  {'  '.join(more)}", flush=True)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _commit() -> str:
    """The commit, marked where code differs from it; recorded results and documents do not count as code.

    ICCKD_COMMIT in the environment says it of a copy whose repository is not there, or not that of the copy; without
    either it is unknown. So it is of an installed package, whatever repository it is installed into.
    """
    if told := os.environ.get("ICCKD_COMMIT"):
        return told
    code = [".", ":!bench/results", ":!docs", ":!README.md"]
    try:
        if Path(_git("rev-parse", "--show-toplevel")).resolve() != _ROOT.resolve():
            return "unknown"
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no", "--", *code) else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
