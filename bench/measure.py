"""How everything here is timed: interleaved, on rotating inputs; medians, quantiles, and what they were measured on.

Contenders take turns within each round and the order rotates from round to round, so that whatever else the machine
does meets all of them. A contender that needs seconds a call gets fewer rounds; one beyond `too_slow` is left out, and
said so.
"""

import datetime
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

from icckd.environment import processor, versions

Row = dict[str, Any]
_PEERS = ("triton", "pykeops", "pytorch-metric-learning")


def interleaved(
    contenders: dict[str, Callable[[int], Any]], device: torch.device, seconds: float, too_slow: float = 20.0
) -> dict[str, list[float]]:
    """Seconds per call of each contender, measured for about `seconds` each; `contender(k)` works on the k-th inputs.

    A contender whose first timed call takes over `too_slow` seconds is not in the result.
    """
    times: dict[str, list[float]] = {}
    rounds = {}
    for name, contender in contenders.items():
        contender(0)
        once = _timed(contender, 0, device)
        if once > too_slow:
            print(f"    {name}: left out, one call takes {once:.0f} s")
            continue
        times[name] = []
        rounds[name] = min(200, max(3, int(seconds / once)))
    for k in range(max(rounds.values(), default=0)):
        names = [name for name in times if k < rounds[name]]
        shift = k % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(_timed(contenders[name], k, device))
    return times


def quantiles(seconds: list[float]) -> Row:
    """Median and 20/80 quantiles in milliseconds."""
    values = torch.tensor(seconds, dtype=torch.float64) * 1e3
    low, median, high = torch.quantile(values, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return {"median_ms": median, "q20_ms": low, "q80_ms": high, "calls": len(seconds)}


def conditions(device: torch.device) -> Row:
    """What a number was measured on, for every row."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "device": device.type,
        "processor": name,
        "threads": torch.get_num_threads(),
        **versions(),
        **{package: _version(package) for package in _PEERS},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def print_row(row: Row, *more: str) -> None:
    """One measured row of a table, on standard output."""
    spread = f"{row['q20_ms']:.2f}–{row['q80_ms']:.2f}"
    print(f"    {row['contender']:<34}{row['median_ms']:>10.2f} ms  ({spread})  {'  '.join(more)}", flush=True)


def _timed(contender: Callable[[int], Any], k: int, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    contender(k)
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, marked where code differs from it; recorded results and documents do not count as code."""
    code = [".", ":!bench/results", ":!docs", ":!README.md"]
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no", "--", *code) else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
