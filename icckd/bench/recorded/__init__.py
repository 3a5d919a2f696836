"""Machines that were measured before: a NAME.json for each, made by `python -m bench.recorded` from bench/results.

A file says once what all its rows agree on, and then the rows: those of `icckd.bench.speed` with times, without errors.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from icckd.bench.measure import Row

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Recording:
    """A recorded machine: what all its numbers were measured on, and its rows."""

    name: str
    conditions: Row
    rows: list[Row]

    @property
    def line(self) -> str:
        """What the numbers are, for a person."""
        return f"{self.name}: recorded on {conditions_line(self.conditions)}"

    def of_case(self, case: str) -> list[Row]:
        """The rows of the case of this name, in the form of one's own, and marked as recorded."""
        return [{**self.conditions, **row, "recorded": self.name} for row in self.rows if row["case"] == case]


def conditions_line(row: Row) -> str:
    """Processor, software and date of a row."""
    commit = "" if row["commit"] == "unknown" else f" at commit {row['commit']}"
    threads = f", {row['threads']} threads" if row["device"] == "cpu" else ""
    return f"{row['processor']}{threads}, torch {row['torch']}, icckd {row['icckd']}{commit}, {row['date'][:10]}"


def names() -> list[str]:
    """The names of all recordings."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


@cache
def load(name: str) -> Recording:
    """The recording of this name, one of `names()`."""
    content = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Recording(name, content["conditions"], content["rows"])


def beside(against: str | None, device: str, cases: Sequence[str]) -> Recording | None:
    """The recording that is asked for; without a name the first of this kind of device with one of these cases."""
    if against is not None:
        return None if against == "none" else load(against)
    found = (load(name) for name in names())
    return next((r for r in found if r.conditions["device"] == device and any(map(r.of_case, cases))), None)
