"""Settings by dotted name, and the names that some of them had before."""

from typing import Any

from icckd.errors import UserError

_RENAMED = {
    "student.loss.weight": "student.loss.kd.weight",
    "student.loss.temperature": "student.loss.kd.temperature",
    "student.loss.standardize": "student.loss.kd.standardize",
    "teacher.memory": "teacher.memory.capacity",
}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def refuse_renamed(values: dict[str, Any], file: str = "") -> None:
    """Raise UserError, saying the new name, where a setting in `values` (of `file`) has that of an earlier version."""
    for name in flat(values):
        if name in _RENAMED:
            of = f" of {file}" if file else ""
            raise UserError(f"{name}{of} is now called {_RENAMED[name]}; use that name")
