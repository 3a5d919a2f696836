"""Which backend passed on a device, family by family, and which of those that did was the fastest: proof.json.

A backend passes a family where none of its GPU tests failed and one passed at least, all its checks against float64
were made and passed, and every result of it in the measurement of speed was right. A test belongs to the backend and
the families that `bench.gpu.outcomes` reads in its name; one that names none belongs to all. Tests that a visit did not
come to are counted (`tests_not_run`). What goes wrong in a peer is no matter.
"""

from collections.abc import Iterable
from math import exp, log
from typing import Any

from bench.gpu.outcomes import BACKENDS, described
from icckd.backends import FAMILIES
from icckd.bench.measure import Row

_NOBODY = "reference"


def prove(machine: Row, tests: list[Row], accuracy: list[Row], speed: list[Row]) -> dict[str, Any]:
    """The content of proof.json."""
    # Speeds of other code, or of another device, say nothing here.
    speed = [row for row in speed if (row["commit"], row["processor"]) == (machine["commit"], machine["processor"])]
    verdicts = {
        backend: {family: _verdict(backend, family, machine, tests, accuracy, speed) for family in FAMILIES}
        for backend in BACKENDS
    }
    passed = {family: [b for b in BACKENDS if verdicts[b][family]["passed"]] for family in FAMILIES}
    # Where nothing was tested there is nothing to choose from.
    fastest = {family: _fastest(family, passed[family], speed) for family in FAMILIES} if tests else {}
    return {
        "architecture": machine["device"]["architecture"],
        "device": machine["device"]["name"],
        **{key: machine[key] for key in ("date", "commit", "torch", "triton", "cuda")},
        "backends": verdicts,
        "fastest": {family: backend for family, backend in fastest.items() if backend},
    }


def _verdict(backend: str, family: str, machine: Row, tests: list[Row], accuracy: list[Row], speed: list[Row]) -> Row:
    contender = f"icckd {backend}"
    tests = [test for test in tests if _concerns(test, backend, family)]
    not_run = [name for name in machine["left_out"]["tests"] if _concerns(described(name), backend, family)]
    checks, results = (
        [row for row in rows if row["family"] == family and row["contender"] == contender] for rows in (accuracy, speed)
    )
    unfinished = _unfinished(machine, family, contender)
    why = f"unfinished: {unfinished[0]}" if unfinished else _why_not_passed(tests, checks, results)
    count = {kind: sum(test["outcome"] == kind for test in tests) for kind in ("passed", "failed", "skipped")}
    return {
        "passed": why is None,
        "why": why,
        "tests_planned": len(tests) + len(not_run),
        **{f"tests_{kind}": number for kind, number in count.items()},
        "tests_not_run": len(not_run),
        "checks_passed": sum(check["passed"] is True for check in checks),
    }


def _concerns(test: Row, backend: str, family: str) -> bool:
    return test["backend"] in (backend, None) and family in (test["families"] or FAMILIES)


def _unfinished(machine: Row, family: str, contender: str) -> list[str]:
    """The cases whose check was left out, or in which the contender took its process down, or may have.

    Compiling ahead proves nothing. Peers take part in `peers`, where nobody in particular may be one of them.
    """
    suspects = {"accuracy": (contender, None), "speed": (contender, None), "peers": (contender,)}
    crashed = [row["case"] for row in machine["failed"] if row["contender"] in suspects.get(row["stage"], ())]
    return [case for case in crashed + machine["left_out"]["accuracy"] if case.split()[0] == family]


def _why_not_passed(tests: list[Row], checks: list[Row], results: list[Row]) -> str | None:
    failed = [test for test in tests if test["outcome"] == "failed"]
    if failed:
        return f"{len(failed)} GPU tests failed, the first: {failed[0]['test']}"
    if not any(test["outcome"] == "passed" for test in tests):
        return "no GPU test passed" if tests else "its GPU tests are owed"
    wrong = [check["why"] for check in checks if check["passed"] is not True]
    wrong += [row["why_not"] for row in results if row.get("why_not")]
    if wrong:
        return wrong[0]
    return None if checks else "nothing was checked against float64"


def _fastest(family: str, passed: list[str], speed: list[Row]) -> str | None:
    """Of the backends that passed, and then of that one and plain PyTorch, which is measured later in a visit."""
    best = _faster(family, passed, speed)
    return _faster(family, [best, _NOBODY] if best else [_NOBODY], speed)


def _faster(family: str, backends: list[str], speed: list[Row]) -> str | None:
    """By the geometric mean over the cases that all of them have that were measured; the first where there is none."""
    times = {backend: times for backend in backends if (times := _times(family, backend, speed))}
    common = set.intersection(*(set(by_case) for by_case in times.values())) if times else set()
    if not common:
        return next(iter(times), None)
    return min(times, key=lambda backend: _geometric_mean(times[backend][case] for case in common))


def _times(family: str, backend: str, speed: list[Row]) -> dict[str, float]:
    """The time of every case, with gradients where there are any, launched or replayed, whichever is less."""
    rows = [
        row for row in speed if row["family"] == family and row["contender"] == f"icckd {backend}" and "mode" in row
    ]
    steps = [row for row in rows if row["mode"].startswith("step")] or rows
    best: dict[str, float] = {}
    for row in steps:
        best[row["case"]] = min(best.get(row["case"], float("inf")), row["median_ms"])
    return best


def _geometric_mean(values: Iterable[float]) -> float:
    logarithms = [log(value) for value in values]
    return exp(sum(logarithms) / len(logarithms))
