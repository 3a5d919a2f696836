"""Files that nothing is taken on trust from: every number can be drawn, every text is one printable line.

Raises UserError that names the file where one cannot be read or does not hold what it should.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from icckd.errors import UserError
from icckd.settings import STAGES

_LONGEST_TEXT = 100
_LARGEST_NUMBER = 1e100  # What is larger is an accident, and overflows in the figures.

Numbers = dict[str, float | None]


def number(value: Any) -> float | None:
    """`value` as a float if it is a number of less than 1e100, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < _LARGEST_NUMBER else None


def one_line(value: Any) -> str:
    """`value` on one line, without control characters (a terminal would obey them) and not endless."""
    words = " ".join(str(value).split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return line if len(line) <= _LONGEST_TEXT else line[: _LONGEST_TEXT - 1] + "…"


def read_history(path: Path) -> dict[str, list[Numbers]]:
    """The records of a metrics.jsonl by stage, in order; none where there is no such file."""
    history: dict[str, list[Numbers]] = {name: [] for name in STAGES}
    if not path.exists():
        return history
    for line_number, line in enumerate(_read(path).splitlines(), start=1):
        record = mapping(_parse(line, path, f"line {line_number}"), path, f"line {line_number}")
        numbers = {key: number(value) for key, value in record.items()}
        if record.get("stage") not in STAGES or numbers.get("epoch") is None:
            raise UserError(f'{path}: line {line_number} should have a "stage" ({" or ".join(STAGES)}) and an "epoch"')
        history[record["stage"]].append(numbers)
    return history


def environment(summary: dict[str, Any], path: Path) -> dict[str, str]:
    """What the summary in `path` tells of the machine, but for what is null."""
    given = mapping(summary.get("environment", {}), path, "environment")
    return {one_line(name): one_line(value) for name, value in given.items() if value is not None}


def by_class(measures: dict[str, Any], name: str, path: Path, stage: str) -> list[float | None]:
    """The number `name` of each class among the `measures` of a stage in `path`; empty where it is not told."""
    values = measures.get(name, [])
    if not isinstance(values, list):
        raise UserError(f"{path}: {stage}.{name} should be a list")
    return [number(value) for value in values]


def class_names(model: dict[str, Any], path: Path) -> list[str] | None:
    """The names of the classes that the model.json in `path` gives; None where it gives none."""
    if "classes" not in model:
        return None
    if not isinstance(model["classes"], list):
        raise UserError(f"{path}: classes should be a list of names")
    return [one_line(name) for name in model["classes"]]


def read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(_read(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable YAML: {one_line(error)}") from error


def read_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds by name; nothing where there is no such file."""
    return mapping(_parse(_read(path), path, "it"), path, "it") if path.exists() else {}


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """What a safetensors file holds by name; None where there is no such file."""
    if not path.exists():
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {one_line(error)}") from error


def picked(tensors: Mapping[str, Tensor], names: Iterable[str], path: Path) -> list[Tensor]:
    """Those of the `tensors` in `path` that have these names. Raises UserError where it lacks one."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise UserError(f"{path}: it lacks {', '.join(missing)}")
    return [tensors[name] for name in names]


def check_tensor(path: Path, name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> None:
    """Raise UserError where the tensor of that name in `path` is of another dtype or shape."""
    if (tensor.dtype, tuple(tensor.shape)) != (dtype, tuple(shape)):
        raise UserError(f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}; it should be {dtype} {tuple(shape)}")


def check_labels(path: Path, name: str, labels: Tensor, classes: int) -> None:
    """Raise UserError where a label among those of that name in `path` is of none of so many classes."""
    if ((labels < 0) | (labels >= classes)).any():
        raise UserError(f"{path}: {name} should lie in [0, {classes})")


def mapping(value: Any, path: Path, what: str) -> dict[str, Any]:
    """`value`, which `what` of the file holds, checked to be names and values."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} should hold names and values, but is a {type(value).__name__}")
    return value


def _parse(text: str, path: Path, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {what} is not readable JSON: {one_line(error)}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
