"""A run's folder, read and checked: what the pages are made of.

Nothing in the folder is trusted: every number is a float that can be drawn, or None; every text is one printable line;
shapes agree.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from icckd.errors import UserError
from icckd.methods import METHODS
from icckd.methods.intra_class import IntraClass, IntraClassSettings
from icckd.methods.kd import Kd
from icckd.settings import NO_METHOD, STAGES, Settings, setting_name

_LONGEST_TEXT = 100
_LARGEST_NUMBER = 1e100  # What is larger is an accident, and overflows in the figures.

Numbers = dict[str, float | None]


@dataclass(frozen=True)
class Stage:
    """One network of a run: its measures at the end (None where unknown) and its record of each epoch."""

    arch: str
    method: str | None
    measures: Numbers
    per_class_accuracy: list[float | None]
    history: list[Numbers]


@dataclass(frozen=True)
class Examples:
    """K test images, uint8 (K, C, H, W), with the teacher's logits (K, classes), labels (K,) and places (K,)."""

    images: Tensor
    logits: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Results:
    """A run: its settings in force by dotted name, and what there is of each stage."""

    settings: dict[str, Any]
    environment: dict[str, str]
    stages: dict[str, Stage]
    classes: list[str]
    examples: Examples | None


def read_results(run: Path) -> Results:
    """What the folder `run` holds; parts that are not there yet are empty.

    Raises UserError where it is no run's folder or a file in it is broken.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(f"{run} is not a run's folder: it has no config.yaml; give the --output of an earlier run")
    settings = _in_force(dict(_settings(_read_yaml(config), Settings, config)))
    summary = _read_object(run / "summary.json")
    history = _read_history(run / "metrics.jsonl")
    models = {name: _read_object(run / name / "model.json") for name in STAGES}
    stages = {
        name: _stage(run, name, summary.get(name), models[name], history[name], settings)
        for name in STAGES
        if name in summary or history[name]
    }
    classes = _classes(run, models, stages)
    environment = _object(summary.get("environment", {}), run / "summary.json", "environment")
    return Results(
        settings=settings,
        environment={_text(name): _text(value) for name, value in environment.items() if value is not None},
        stages=stages,
        classes=classes,
        examples=_read_examples(run / "teacher" / "examples.safetensors", len(classes)),
    )


def student_methods(results: Results) -> list[str]:
    """The methods that the student learned by."""
    student = results.stages.get("student")
    named = student.method if student and student.method else results.settings.get("student.loss.method")
    return [name for name in str(named or Kd.name).split("+") if name != NO_METHOD]


def number(value: Any) -> float | None:
    """`value` as a float if it is a number of less than 1e100, otherwise None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < _LARGEST_NUMBER else None


def _text(value: Any) -> str:
    """`value` on one line, without control characters (a terminal would obey them) and not endless."""
    words = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def _stage(
    run: Path, name: str, summary: Any, model: dict[str, Any], history: list[Numbers], settings: dict[str, Any]
) -> Stage:
    summary = _object({} if summary is None else summary, run / "summary.json", name)
    accuracies = summary.get("per_class_accuracy", [])
    if not isinstance(accuracies, list):
        raise UserError(f"{run / 'summary.json'}: {name}.per_class_accuracy should be a list")
    measures = {key: number(value) for key, value in summary.items()}
    return Stage(
        arch=_text(model.get("arch", settings.get(f"{name}.arch", "unknown network"))),
        method=_text(summary["method"]) if isinstance(summary.get("method"), str) else None,
        measures={**measures, "parameters": number(model.get("parameters"))},
        per_class_accuracy=[number(value) for value in accuracies],
        history=history,
    )


def _classes(run: Path, models: dict[str, dict[str, Any]], stages: dict[str, Stage]) -> list[str]:
    """The class names, in order. Numbers stand in for names where no model.json gives them."""
    lengths = {name: len(stage.per_class_accuracy) for name, stage in stages.items() if stage.per_class_accuracy}
    names = [str(index) for index in range(max(lengths.values(), default=0))]
    for stage, model in models.items():
        if "classes" in model:
            if not isinstance(model["classes"], list):
                raise UserError(f"{run / stage / 'model.json'}: classes should be a list of names")
            names = [_text(name) for name in model["classes"]]
            break
    for stage, length in lengths.items():
        if length != len(names):
            raise UserError(
                f"{run / 'summary.json'}: {stage}.per_class_accuracy has {length} values for {len(names)} classes"
            )
    return names


def _read_history(path: Path) -> dict[str, list[Numbers]]:
    history: dict[str, list[Numbers]] = {name: [] for name in STAGES}
    if not path.exists():
        return history
    for line_number, line in enumerate(_read(path).splitlines(), start=1):
        record = _object(_parse(line, path, f"line {line_number}"), path, f"line {line_number}")
        numbers = {key: number(value) for key, value in record.items()}
        if record.get("stage") not in STAGES or numbers.get("epoch") is None:
            raise UserError(f'{path}: line {line_number} should have a "stage" ({" or ".join(STAGES)}) and an "epoch"')
        history[record["stage"]].append(numbers)
    return history


def _read_examples(path: Path, classes: int) -> Examples | None:
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {_text(error)}") from error
    problem = _examples_problem(tensors, classes)
    if problem:
        raise UserError(f"{path}: {problem}")
    return Examples(**{name: tensors[name] for name in Examples.__dataclass_fields__})


def _examples_problem(tensors: dict[str, Tensor], classes: int) -> str | None:
    missing = Examples.__dataclass_fields__.keys() - tensors.keys()
    if missing:
        return f"it lacks {', '.join(sorted(missing))}"
    count = len(tensors["labels"]) if tensors["labels"].ndim else 0
    wanted = {
        "images": (torch.uint8, (count, *tensors["images"].shape[1:4])),
        "logits": (torch.float32, (count, classes)),
        "labels": (torch.int64, (count,)),
        "indices": (torch.int64, (count,)),
    }
    for name, (dtype, shape) in wanted.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            return f"{name} is {tensor.dtype} {tuple(tensor.shape)}; it should be {dtype} {shape}"
    if tensors["images"].ndim != 4 or 0 in tensors["images"].shape[1:]:
        return f"images has shape {tuple(tensors['images'].shape)}; it should be (K, C, H, W)"
    if not tensors["logits"].isfinite().all():
        return "logits should be finite"
    if ((tensors["labels"] < 0) | (tensors["labels"] >= classes)).any():
        return f"labels should lie in [0, {classes})"
    return None


def _settings(values: Any, kind: type, path: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of the dataclass `kind` that `values` holds, by dotted name."""
    values = _object(values, path, prefix.rstrip(".") or "it")
    hints = get_type_hints(kind)
    for name in (field.name for field in fields(kind)):
        if name not in values:
            continue
        value, hint = values[name], hints[name]
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _settings(value, hint, path, f"{prefix}{name}.")
        elif isinstance(value, list) and all(_is_plain(item) for item in value):
            yield prefix + name, [_plain(item) for item in value]
        elif _is_plain(value):
            yield prefix + name, _plain(value)
        else:
            raise UserError(f"{path}: {prefix}{name} should be a number, a text, or a list of them")


def _in_force(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` without those of methods that the run does not use."""
    chosen = [
        *str(settings.get("teacher.loss.method")).split("+"),
        *str(settings.get("student.loss.method")).split("+"),
    ]
    unused = tuple(f"{stage}.loss.{setting_name(name)}." for stage in STAGES for name in METHODS if name not in chosen)
    if settings.get("teacher.loss.method", IntraClass.name) != IntraClass.name:
        unused += tuple(f"teacher.loss.{field.name}" for field in fields(IntraClassSettings))
    return {name: value for name, value in settings.items() if not name.startswith(unused)}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, float, str)) or (isinstance(value, int) and abs(value) < 2**64)


def _plain(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else value


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(_read(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable YAML: {_text(error)}") from error


def _read_object(path: Path) -> dict[str, Any]:
    return _object(_parse(_read(path), path, "it"), path, "it") if path.exists() else {}


def _object(value: Any, path: Path, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} should hold names and values, but is a {type(value).__name__}")
    return value


def _parse(text: str, path: Path, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {what} is not readable JSON: {_text(error)}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {_text(error)}") from error
