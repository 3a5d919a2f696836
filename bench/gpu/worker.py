"""A process that does one stage for some cases, and writes each result down before it begins the next.

    python -m bench.gpu.worker STAGE --output DIR [--dry-run] [--until T] [--cases K …] [--progress FILE]

Stages: facts; ceilings; compile, which calls what compiles something once; accuracy; speed. K are places in the stage's
list of cases. FILE says which cases are done and which is in hand, so that the parent knows what a crash was about.
Exit status 0: every case is done, or there was no time left for it.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import measure
from bench.gpu import accuracy, cases, results, speed
from bench.gpu.case import Case, forward, step, with_leaves
from bench.gpu.ceilings import Ceilings, measure_ceilings
from bench.gpu.facts import device_facts
from bench.measure import Row
from icckd.files import write_json

STAGES = ("facts", "ceilings", "compile", "accuracy", "speed")
# Seconds for each contender, and the least number of calls: on a GPU, and in Triton's interpreter.
_EFFORT, _DRY_EFFORT = (0.15, 5), (0.0, 1)


def case_list(stage: str, dry_run: bool) -> list[Case]:
    """The cases of a stage, the most important first."""
    if stage in ("facts", "ceilings"):
        return []
    chosen = cases.ACCURACY if stage == "accuracy" else cases.SPEED
    return cases.tiny(chosen) if dry_run else chosen


def compile_case(case: Case, device: torch.device) -> None:
    """Make the calls that compile something; what they give, or why they fail, the other stages will say."""
    torch._dynamo.reset()
    for contender in case.contenders(device):
        if not contender.compiles or contender.why_not:
            continue
        start, problem = time.perf_counter(), ""
        try:
            x = with_leaves(case, case.inputs(0, device))
            step(case, contender.function, x)
            forward(contender.function, x)
        except Exception as error:
            if not measure.clock(device).is_usable():
                raise
            problem = type(error).__name__
        print(f"    {case.name}: {contender.name} {time.perf_counter() - start:.1f} s {problem}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--until", type=float, default=float("inf"), metavar="T", help="begin no case after this time")
    parser.add_argument("--cases", type=int, nargs="*", default=[], metavar="K")
    parser.add_argument("--progress", type=Path, metavar="FILE")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry_run else "cuda")
    torch.set_num_threads(1)
    effort = _DRY_EFFORT if options.dry_run else _EFFORT
    if options.stage == "facts":
        write_json(options.output / "machine.json", device_facts(device))
    if options.stage == "ceilings":
        results.add(options.output / "ceilings.json", *measure_ceilings(device, *effort))
    listed = case_list(options.stage, options.dry_run)
    done: list[int] = []
    for k in options.cases:
        if time.time() > options.until:
            break
        write_json(options.progress, {"done": done, "in_hand": k})
        for row in _work(options.stage, listed[k], device, options.output, effort):
            results.add(options.output / f"{options.stage}.json", row)
        done.append(k)
    if options.progress:
        write_json(options.progress, {"done": done, "in_hand": None})


def _work(stage: str, case: Case, device: torch.device, output: Path, effort: tuple[float, int]) -> Iterator[Row]:
    if stage == "compile":
        compile_case(case, device)
    elif stage == "accuracy":
        yield from accuracy.check_case(case, device)
    else:
        ceilings = Ceilings.of(results.read(output / "ceilings.json"))
        yield from speed.measure_case(case, device, ceilings, *effort)


if __name__ == "__main__":
    main()
