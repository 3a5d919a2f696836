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
    """Nested settings by dotted name; names that are dotted already may stand among them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name as nested ones. Raises UserError where one is both a value and a group of others."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        group = found
        for part in groups:
            group = group.setdefault(part, {})
            if not isinstance(group, dict):
                raise UserError(f"{part} has a value, and {name} too; give one of them")
        if isinstance(group.get(last), dict):
            raise UserError(f"{name} has a value, and settings in it too; give one of them")
        group[last] = value
    return found


def shown(value: Any) -> str:
    """A setting's value as YAML has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def refuse_renamed(values: dict[str, Any], file: str = "") -> None:
    """Raise UserError, saying the new name, where a setting in `values` (of `file`) has that of an earlier version."""
    for name in flat(values):
        if name in _RENAMED:
            of = f" of {file}" if file else ""
            raise UserError(f"{name}{of} is now called {_RENAMED[name]}; use that name")
