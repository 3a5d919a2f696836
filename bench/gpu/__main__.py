"""`python -m bench.gpu --output DIR`: build, GPU tests, accuracy and speed, in one call of under eight minutes."""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.gpu import figure, proof, report, results
from bench.gpu.stages import Visit
from icckd.files import write_json, write_text

# The shares of the whole time that the build may take, and after which everything but measuring must be over.
_BUILD, _UNTIMED = 0.35, 0.50
_FACTS = 60
# Processes that compile, and that check accuracy, beside the build and the tests.
_COMPILERS, _CHECKERS = 8, 4
# Kept for the report.
_REPORT = 10
# What a visit writes, all of it: an older visit's files would be taken for this one's.
FILES = ("machine", "tests", "ceilings", "accuracy", "speed", "proof")


def visit(output: Path, seconds: float, dry_run: bool) -> bool:
    """Do everything; whether no process crashed and no test or check failed."""
    output = output.resolve()
    for name in FILES:
        (output / f"{name}.json").unlink(missing_ok=True)
    start = time.time()
    doing = Visit(output, dry_run, start + seconds - _REPORT)
    doing.work("facts", start + _FACTS)
    if not (output / "machine.json").exists():
        print("There is no device that PyTorch can use; --dry-run needs none.", file=sys.stderr)
        return False
    device = json.loads((output / "machine.json").read_text())["device"]
    # Where nothing is timed, stages overlap; first calls are made ahead, since compiling takes most of their time.
    until = start + _UNTIMED * seconds
    with ThreadPoolExecutor() as pool:
        compiling = pool.submit(doing.share, "compile", until, 1 if dry_run else _COMPILERS)
        doing.build(device["capability"], _BUILD * seconds)
        checking = pool.submit(doing.share, "accuracy", until, 1 if dry_run else _CHECKERS)
        doing.tests(until)
    for stage in (compiling, checking):
        stage.result()
    doing.work("ceilings", doing.end)
    doing.work("speed", doing.end)
    return write_report(doing)


def write_report(doing: Visit) -> bool:
    """machine.json, proof.json, summary.md and the figure, from what the stages left."""
    output = doing.output
    machine = json.loads((output / "machine.json").read_text())
    machine |= {"stages": doing.stages, "failed": doing.failed, "left_out": doing.left_out, "dry_run": doing.dry_run}
    write_json(output / "machine.json", machine)
    tests, *measured = (results.read(output / f"{name}.json") for name in ("tests", "ceilings", "accuracy", "speed"))
    rows = [row for part in measured for row in part]
    proven = proof.prove(machine, tests, measured[1], measured[2])
    write_json(output / "proof.json", proven)
    text = report.summary(machine, proven, tests, rows, doing.dry_run)
    write_text(output / "summary.md", text)
    try:
        figure.draw(rows, output / "speed.png")
    except ImportError:
        print("No figure: matplotlib is not installed.")
    (output / results.LOCK).unlink(missing_ok=True)
    print(text.split("## Ceilings")[0])
    bad = [test for test in tests if test["outcome"] == "failed"]
    bad += [row for row in measured[1] if row["passed"] is False]
    return not bad and not doing.failed and all(stage["succeeded"] for stage in doing.stages)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where everything is written")
    parser.add_argument("--seconds", type=float, default=450, help="time for all of it (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes in Triton's interpreter, without a GPU")
    options = parser.parse_args()
    return 0 if visit(options.output, options.seconds, options.dry_run) else 1


if __name__ == "__main__":
    sys.exit(main())
