"""`python -m bench.distributed`: starts the processes, prints what they found, and keeps it."""

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.multiprocessing as mp

import bench.distributed as face
from bench.distributed.cases import QUICK, SHAPES, Shape
from bench.distributed.worker import work
from bench.intra_class import add_arguments, save
from icckd.bench import measure
from icckd.bench.measure import Row

MOST_ON_A_CPU = 4


def run(processes: int, threads: int, device: str, shapes: list[Shape], seconds: float) -> list[Row]:
    """The rows that so many processes, of so many threads each, measure together."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (processes, threads, device, shapes, seconds, Path(folder)), nprocs=processes)
        return json.loads(Path(folder, "rows.json").read_text(encoding="utf-8"))


def show(rows: Iterable[Row]) -> None:
    """The rows of one number of processes, case by case."""
    heading = ""
    for row in rows:
        of_steps = row["part"] == "hidden"
        processes = f"{row['processes']} process{'es' * (row['processes'] > 1)}"
        title = f"{processes}, {row['case']}" + (", training steps" if of_steps else "")
        if title != heading:
            heading = title
            print(f"\n{title}")
        measure.print_row(row, f"{row['hidden']:.0%} hidden" if of_steps else f"{row['sent_bytes'] / 1e6:.3f} MB sent")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=face.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--processes", nargs="+", type=int, metavar="W", help="how many (default: 1 to 4, or GPUs)")
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    most = MOST_ON_A_CPU if options.device == "cpu" else torch.cuda.device_count()
    counts = options.processes or ([2] if options.quick else range(1, most + 1))
    if options.device == "cuda" and max(counts, default=1) > most:
        parser.error(f"this machine has {most} GPUs; --processes should be as many at most, and one GPU at least there")
    shapes, seconds = (QUICK, 0.05) if options.quick else (SHAPES, 1.0)
    rows: list[Row] = []
    for processes in counts:
        found = run(processes, options.threads, options.device, shapes, seconds)
        show(found)
        rows += found
    save(rows, options)


if __name__ == "__main__":
    main()
