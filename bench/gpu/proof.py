"""Which backend passed on a device, family by family, and which of those that did was the fastest: proof.json.

A backend passes a family where all its GPU tests and all its checks against float64 passed, at least one of each, none
crashed or was left out, and every result in the measurement of speed was right. Tests belong to the backend whose name
is among their parameters or in their file's name; tests that name none belong to all.
"""

import re
from collections.abc import Iterable
from math import exp, log
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench.measure import Row
from icckd.backends import FAMILIES

BACKENDS = ("triton", "cuda")
_NOBODY = "reference"


def outcomes(report: Path) -> list[Row]:
    """Every test of a JUnit file: name, backend or None, outcome "passed", "failed" or "skipped"."""
    if not report.exists():
        return []
    return [_outcome(test) for test in ElementTree.parse(report).iter("testcase")]


def _outcome(test: ElementTree.Element) -> Row:
    file, name = test.get("classname", ""), test.get("name", "")
    parameters = re.search(r"\[(.*)\]", name)
    words = re.split(r"[-_.]", f"{file}-{parameters[1] if parameters else ''}")
    problem = next((test.find(kind) for kind in ("failure", "error") if test.find(kind) is not None), None)
    skipped = test.find("skipped")
    return {
        "test": f"{file}::{name}",
        "backend": next((backend for backend in BACKENDS if backend in words), None),
        "outcome": "failed" if problem is not None else "skipped" if skipped is not None else "passed",
        "why": None if problem is None else problem.get("message", "").split("\n")[0][:300],
    }


def prove(machine: Row, tests: list[Row], accuracy: list[Row], speed: list[Row]) -> dict[str, Any]:
    """The content of proof.json."""
    unfinished = [row["case"] for row in machine["failed"]] + machine["left_out"]["accuracy"]
    verdicts = {
        backend: {family: _verdict(backend, family, unfinished, tests, accuracy, speed) for family in FAMILIES}
        for backend in BACKENDS
    }
    passed = {family: [b for b in BACKENDS if verdicts[b][family]["passed"]] for family in FAMILIES}
    fastest = {family: _fastest(family, passed[family], speed) for family in FAMILIES}
    return {
        "architecture": machine["device"]["architecture"],
        "device": machine["device"]["name"],
        **{key: machine[key] for key in ("date", "commit", "torch", "triton", "cuda")},
        "backends": verdicts,
        "fastest": {family: backend for family, backend in fastest.items() if backend},
    }


def _verdict(
    backend: str, family: str, unfinished: list[str], tests: list[Row], accuracy: list[Row], speed: list[Row]
) -> Row:
    tests = [test for test in tests if test["backend"] in (backend, None)]
    checks = [row for row in accuracy if row["family"] == family and row["contender"] == f"icckd {backend}"]
    results = [row for row in speed if row["family"] == family and row["contender"] == f"icckd {backend}"]
    unfinished = [case for case in unfinished if case.split()[0] == family]
    why = f"unfinished: {unfinished[0]}" if unfinished else _why_not_passed(tests, checks, results)
    return {
        "passed": why is None,
        "why": why,
        "tests_passed": sum(test["outcome"] == "passed" for test in tests),
        "checks_passed": sum(check["passed"] is True for check in checks),
    }


def _why_not_passed(tests: list[Row], checks: list[Row], results: list[Row]) -> str | None:
    failed = [test for test in tests if test["outcome"] == "failed"]
    if failed:
        return f"{len(failed)} GPU tests failed, the first: {failed[0]['test']}"
    if not any(test["outcome"] == "passed" for test in tests):
        return "no GPU test passed"
    wrong = [check["why"] for check in checks if check["passed"] is not True]
    wrong += [row["why_not"] for row in results if row.get("why_not")]
    if wrong:
        return wrong[0]
    return None if checks else "nothing was checked against float64"


def _fastest(family: str, passed: list[str], speed: list[Row]) -> str | None:
    """Of the backends that passed, and plain PyTorch: by the geometric mean over the cases that all have in common."""
    times = {backend: _times(family, backend, speed) for backend in (*passed, _NOBODY)}
    common = set.intersection(*(set(by_case) for by_case in times.values()))
    if not common:
        return None
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
