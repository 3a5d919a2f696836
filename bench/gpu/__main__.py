"""`python -m bench.gpu --output DIR [--part prove|measure]`: everything that a visit to a GPU should do (docs/gpu.md).

prove    builds, runs the GPU tests and checks every backend against float64
measure  measures: what the device can do, this project's kernels on every target, then everybody on every case

Without --part both, one after the other. `measure` keeps what an earlier call of `prove` left in DIR; `prove` begins
anew. A call that is cut off leaves whole files of all that it finished.
"""

import argparse
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from bench.gpu import plan, record, report, results
from bench.gpu.stages import Visit

# Seconds kept of a part for its last record.
_RECORD = 10


def visit(output: Path, parts: tuple[str, ...], seconds: float, dry_run: bool, only: tuple[str, ...]) -> bool:
    """Do these parts, each in so many seconds; whether no process crashed and no test or check failed."""
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
        doing = Visit(output.resolve(), Path(scratch), dry_run, 0.0, only)
        record.begin(doing, parts)
        for part in parts:
            if not _do(doing, part, seconds):
                print(
                    "There is no device that PyTorch can use, or it does not answer; --dry-run needs none.",
                    file=sys.stderr,
                )
                return False
        machine, proven, rows = record.write(doing)
    results.remove_temporary(doing.output)
    print(report.ending(machine, proven, rows))
    bad = [row for row in rows["tests"] if row["outcome"] == "failed"]
    bad += [row for row in rows["accuracy"] if row["passed"] is False]
    return not bad and not doing.failed and all(stage["succeeded"] for stage in doing.stages)


def _do(doing: Visit, part: str, seconds: float) -> bool:
    """Do one part; whether there is a device."""
    lock = threading.Lock()

    def write() -> None:
        with lock:
            try:
                record.write(doing)
            # A summary that fails must not end the visit that it is about.
            except Exception:
                traceback.print_exc()

    start = time.time()
    doing.part, doing.end = part, start + seconds - _RECORD
    if not plan.PARTS[part](doing, start, write):
        return False
    write()
    record.draw(doing)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where everything is written")
    parser.add_argument("--part", choices=plan.PARTS, help="this part alone")
    parser.add_argument("--seconds", type=float, default=310, help="time for each part (default: %(default)s)")
    parser.add_argument(
        "--cases", nargs="+", default=[], metavar="TEXT", help="only cases whose name holds one of these"
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes in Triton's interpreter, without a GPU")
    options = parser.parse_args()
    parts = (options.part,) if options.part else tuple(plan.PARTS)
    return 0 if visit(options.output, parts, options.seconds, options.dry_run, tuple(options.cases)) else 1


if __name__ == "__main__":
    sys.exit(main())
