"""The most memory that one forward and backward takes beyond its inputs, in a process of its own.

`python -m bench.memory FAMILY CONTENDER N D C` prints bytes. On Linux the kernel keeps the highest resident size, and
lets it be reset once inputs and libraries are there; on a GPU PyTorch's allocator counts.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from icckd.bench.case import Case, step, with_leaves
from icckd.bench.functions.intra_class import IntraClass
from icckd.bench.functions.supervised_contrastive import SupervisedContrastive
from icckd.bench.speed import everybody

_CASES: dict[str, Callable[..., Case]] = {
    "intra_class": partial(IntraClass, "float32", active=0.7),
    "supervised_contrastive": partial(SupervisedContrastive, "float32"),
}


def peak(family: str, contender: str, n: int, d: int, c: int, device: str, threads: int) -> int | None:
    """Bytes beyond the inputs that it takes, gradients included; None where its process was killed for them."""
    arguments = [family, contender, *map(str, (n, d, c)), "--device", device, "--threads", str(threads)]
    return printed_bytes(contender, "bench.memory", arguments)


def printed_bytes(contender: str, module: str, arguments: Sequence[str]) -> int | None:
    """The number that a module, run with these arguments, prints last; None where its process was killed for memory."""
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return int(result.stdout.split()[-1])
    if result.returncode < 0 or "memory" in result.stderr:
        return None
    raise RuntimeError(f"{contender} failed: {result.stderr.strip().splitlines()[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("family", choices=_CASES)
    parser.add_argument("contender")
    for name in "ndc":
        parser.add_argument(name, type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    make = _CASES[options.family]
    case, small = make(options.n, options.d, options.c), make(256, 16, 4)
    (contender,) = (c for c in everybody(case, device) if c.name == options.contender)
    # Libraries load their own memory at first use.
    step(small, contender.function, with_leaves(small, small.inputs(0, device)))
    inputs = with_leaves(case, case.inputs(0, device))
    before = reset(device)
    results = step(case, contender.function, inputs)
    print(highest(device) - before)
    del results


def reset(device: torch.device) -> int:
    """Let the highest use of memory count anew; the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def highest(device: torch.device) -> int:
    """The most bytes in use since the last `reset`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    main()
