"""A process that does one stage for some cases, and writes each result down before it begins the next.

    python -m bench.gpu.worker STAGE --output DIR [--dry-run] [--until T] [--cases K …] [--progress FILE]
                               [--only TEXT …] [--without K CONTENDER]

Stages:
    facts        the device, into machine.json unless a run before this one has left it there
    ceilings     what the device can do
    compile      one call of each of the project's backends that compiles something, for the cases of `speed`
    compile_all  the same for the first cases of `peers`, with peers
    accuracy     the project's backends against float64
    speed        the project's kernels on every case that has a target
    peers        everybody on every case

K are places in the stage's list of cases, of which those count whose name holds one of TEXT. FILE says which cases are
done and what is in hand, so that the parent knows what a crash was about. Exit status 0: every case is done, or there
was no time left for it.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from bench.gpu import accuracy, cases, results, speed
from bench.gpu.ceilings import Ceilings, measure_ceilings
from bench.gpu.facts import device_facts
from icckd.bench import measure
from icckd.bench.case import Case, Contender, forward, release, step, with_leaves
from icckd.bench.measure import Row
from icckd.files import write_json

_CASES: dict[str, list[Case]] = {
    "compile": cases.TARGETS,
    # As many as a visit comes to.
    "compile_all": cases.SPEED[:20],
    "accuracy": cases.ACCURACY,
    "speed": cases.TARGETS,
    "peers": cases.SPEED,
}
STAGES = ("facts", "ceilings", *_CASES)
# What plain PyTorch takes is compared with as a peer's time is.
_KERNELS = ("icckd triton", "icckd cuda")
# Seconds for each contender, and the least number of calls: on a GPU, and in Triton's interpreter.
_EFFORT, _DRY_EFFORT = (0.15, 5), (0.0, 1)


def case_list(stage: str, dry_run: bool, only: tuple[str, ...] = ()) -> list[Case]:
    """The cases of a stage, the most important first; with `only`, those whose name holds one of these texts."""
    chosen = _CASES.get(stage, [])
    chosen = cases.tiny(chosen) if dry_run else chosen
    return [case for case in chosen if not only or any(text in case.name for text in only)]


def contenders_of(stage: str, case: Case, device: torch.device) -> list[Contender]:
    """Who takes part in a stage."""
    everybody = case.contenders(device)
    if stage == "accuracy":
        return [contender for contender in everybody if not contender.is_peer and contender.checked]
    if stage in ("compile", "speed"):
        return [contender for contender in everybody if contender.name in _KERNELS]
    return everybody


def compile_case(case: Case, contenders: list[Contender], device: torch.device, mark: speed.Mark) -> None:
    """Make the calls that compile something; what they give, or why they fail, the other stages will say."""
    torch._dynamo.reset()
    for contender in contenders:
        if not contender.compiles or contender.why_not:
            continue
        mark(contender.name)
        start, problem = time.perf_counter(), ""
        try:
            x = with_leaves(case, case.inputs(0, device))
            step(case, contender.function, x)
            forward(contender.function, x)
        except Exception as error:
            if not measure.clock(device).is_usable():
                raise
            problem = type(error).__name__
        x = None
        release(device)
        print(f"    {case.name}: {contender.name} {time.perf_counter() - start:.1f} s {problem}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--until", type=float, default=float("inf"), metavar="T", help="begin no case after this time")
    parser.add_argument("--cases", type=int, nargs="*", default=[], metavar="K")
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT")
    parser.add_argument("--without", nargs=2, action="append", default=[], metavar=("K", "CONTENDER"))
    parser.add_argument("--progress", type=Path, metavar="FILE")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry_run else "cuda")
    torch.set_num_threads(1)
    effort = _DRY_EFFORT if options.dry_run else _EFFORT
    if options.stage == "facts":
        facts = device_facts(device)
        if not (options.output / "machine.json").exists():
            results.write(options.output / "machine.json", facts)
    if options.stage == "ceilings":
        for row in measure_ceilings(device, *effort):
            results.put(options.output / "ceilings.json", row)
    listed = case_list(options.stage, options.dry_run, tuple(options.only))
    done: list[int] = []
    for k in options.cases:
        if time.time() > options.until:
            break

        def mark(contender: str | None, k: int = k) -> None:
            write_json(options.progress, {"done": done, "in_hand": k, "contender": contender})

        mark(None)
        unfit = {contender for place, contender in options.without if int(place) == k}
        contenders = [
            replace(contender, why_not="left out: it has crashed") if contender.name in unfit else contender
            for contender in contenders_of(options.stage, listed[k], device)
        ]
        for rows in _work(options.stage, listed[k], contenders, device, options.output, effort, mark):
            results.put(options.output / ("accuracy.json" if options.stage == "accuracy" else "speed.json"), *rows)
        done.append(k)
    if options.progress:
        write_json(options.progress, {"done": done, "in_hand": None, "contender": None})


def _work(
    stage: str,
    case: Case,
    contenders: list[Contender],
    device: torch.device,
    output: Path,
    effort: tuple[float, int],
    mark: speed.Mark,
) -> Iterator[list[Row]]:
    if stage in ("compile", "compile_all"):
        compile_case(case, contenders, device, mark)
    elif stage == "accuracy":
        yield from accuracy.check_case(case, contenders, device, mark)
    else:
        processor = measure.conditions(device)["processor"]
        ceilings = Ceilings.of(results.read(output / "ceilings.json"), processor)
        yield from speed.measure_case(case, contenders, device, ceilings, *effort, mark)


if __name__ == "__main__":
    main()
