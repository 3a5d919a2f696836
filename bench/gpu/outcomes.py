"""A plugin of pytest that writes each outcome down as it comes: `-p bench.gpu.outcomes --outcomes FILE --planned FILE`.

With pytest-xdist the process in control writes; the others end themselves, and are replaced, where a test has made the
device unusable for those behind it or does not end. What takes longest goes first.
"""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import results
from icckd.backends import FAMILIES
from icckd.bench.measure import Row
from icckd.files import write_json

BACKENDS = ("triton", "cuda")
# What a test of a family has in its name or its parameters.
_WORDS = {
    **{family: family for family in FAMILIES},
    "rkd": "relational",
    "bank": "bank",
    "hierarchical": "hierarchical",
    "center_contrastive": "cross_entropy",
    "supervised_contrastive": "intra_class",
}
# Seconds that one test may take, compilation and all.
_LONGEST = 120
# Characters kept of what a failed test prints, and of the beginning and of the end of its reason.
_LOG, _WHY = 3000, 500
# Tests that wait for one another's memory, or compile most: they should not be the last.
_SLOW = ("test_sizes", "test_compiles_whole", "test_accuracy")


def described(test: str) -> Row:
    """The backend that a test is about, by its parameters or its file's name, and the families; None: all of them."""
    words = re.split(r"[-_.\[\]/]", test)
    backend = next((backend for backend in BACKENDS if backend in words), None)
    families = sorted({family for word, family in _WORDS.items() if word in test})
    return {"test": test, "backend": backend, "families": families or None}


def row_of(report: pytest.TestReport) -> Row | None:
    """What a report says of its test; None where a later report will."""
    if report.passed and report.when != "call":
        return None
    row = {**described(report.nodeid), "outcome": report.outcome, "seconds": round(report.duration, 1), "why": None}
    if report.skipped:
        row["why"] = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        first, *others = str(crash.message if crash else report.longrepr).strip().split("\n")
        # Compilers say at the end what went wrong.
        end = " ".join(" ".join(others).split())[-_WHY:]
        row |= {
            "why": first[:_WHY] + (f" … {end}" if end else ""),
            "log": results.portable(report.longreprtext)[-_LOG:],
        }
    return row


class Recorder:
    """In the process in control: outcomes and what was planned, into files."""

    def __init__(self, outcomes: Path, planned: Path):
        self.outcomes, self.planned = outcomes, planned
        self.failed: set[str] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._plan([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self._plan(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        row = row_of(report)
        # The first failure is the cause; what ends a process after it is not.
        if row is not None and report.nodeid not in self.failed:
            results.put(self.outcomes, row)
            self.failed |= {report.nodeid} if report.failed else set()

    def _plan(self, ids: list[str]) -> None:
        if ids:
            write_json(self.planned, ids)


class Guard:
    """In the processes that run tests for another: an end to what hangs, and to a device that is unusable."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        hanging = threading.Timer(_LONGEST, os._exit, [1])
        hanging.daemon = True
        hanging.start()
        try:
            return (yield)
        finally:
            hanging.cancel()
            if not _device_is_usable():
                os._exit(1)


def _device_is_usable() -> bool:
    try:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench.gpu")
    group.addoption("--outcomes", metavar="FILE", help="the outcomes so far, a JSON list")
    group.addoption("--planned", metavar="FILE", help="the names of all tests that are to be run")


def pytest_configure(config: pytest.Config) -> None:
    # A worker of this run's; the environment would also tell of a run around it.
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Guard())
    elif config.option.outcomes:
        config.pluginmanager.register(Recorder(Path(config.option.outcomes), Path(config.option.planned)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((k for k, name in enumerate(_SLOW) if name in item.nodeid), len(_SLOW))

    items.sort(key=place)
