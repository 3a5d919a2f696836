"""A run's folder, read and checked: what the pages are made of.

Nothing in the folder is trusted: every number is a float that can be drawn, or None; every text is one printable line;
shapes agree.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from icckd.errors import UserError
from icckd.methods import METHODS, TeacherMethod, settings_type
from icckd.methods.intra_class import IntraClass, IntraClassSettings
from icckd.methods.kd import Kd
from icckd.methods.spectrum import Spectrum
from icckd.report.codes import Codes, read_codes
from icckd.report.examples import Examples, read_examples
from icckd.report.federated import Federation, read_federation
from icckd.report.made import MadeImages, read_made_images
from icckd.report.reading import (
    Numbers,
    by_class,
    class_names,
    environment,
    mapping,
    number,
    one_line,
    read_history,
    read_object,
    read_yaml,
)
from icckd.report.trials import ClassAugmentation, read_class_augmentation
from icckd.settings import NO_METHOD, STAGES, Settings, setting_name

# Numbers of each class that a summary may have of a network, besides its accuracy.
CLASS_NUMBERS = ("per_class_robust_accuracy", "adversarial_temperatures", "natural_temperatures")


@dataclass(frozen=True)
class Stage:
    """One network of a run: its measures at the end (None where unknown) and its record of each epoch.

    `settings` are those of its loss in force, by dotted name, where the summary tells them. `by_class` are further
    numbers of each class, by name, as far as the summary tells them.
    """

    arch: str
    method: str | None
    settings: dict[str, Any]
    measures: Numbers
    per_class_accuracy: list[float | None]
    by_class: dict[str, list[float | None]]
    history: list[Numbers]


@dataclass(frozen=True)
class Results:
    """A run: its settings by dotted name, and what there is of each stage.

    `settings` are without those of methods that are not in force; `data` is what was made of those of the data, by
    dotted name; `class_augmentation` is what was found of crops by class, if they were tried, `codes` what a teacher
    trained by disparity learning left of test windows, `made_images` those that a student learned from, if they were
    made for it, `federation` what there is of a student's clients.
    """

    settings: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, str]
    stages: dict[str, Stage]
    classes: list[str]
    examples: Examples | None
    class_augmentation: ClassAugmentation | None = None
    made_images: MadeImages | None = None
    codes: Codes | None = None
    federation: Federation | None = None


def read_results(run: Path) -> Results:
    """What the folder `run` holds; parts that are not there yet are empty.

    Raises UserError where it is no run's folder or a file in it is broken.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(f"{run} is not a run's folder: it has no config.yaml; give the --output of an earlier run")
    settings = in_force(dict(_settings(read_yaml(config), Settings, config)))
    summary = read_object(run / "summary.json")
    history = read_history(run / "metrics.jsonl")
    models = {name: read_object(run / name / "model.json") for name in STAGES}
    stages = {
        name: _stage(run, name, summary.get(name), models[name], history[name], settings)
        for name in STAGES
        if name in summary or history[name]
    }
    classes = _classes(run, models, stages)
    has_codes = settings.get("teacher.loss.method") == Spectrum.name
    return Results(
        settings=settings,
        data=_values(summary.get("data", {}), run / "summary.json", "data"),
        environment=environment(summary, run / "summary.json"),
        stages=stages,
        classes=classes,
        examples=read_examples(run / "teacher" / "examples.safetensors", len(classes)),
        class_augmentation=read_class_augmentation(summary, run / "summary.json", classes),
        made_images=_made_images(run, stages, len(classes)),
        federation=read_federation(summary, run / "summary.json"),
        codes=read_codes(run / "teacher" / "findings.safetensors", len(classes)) if has_codes else None,
    )


def student_methods(results: Results) -> list[str]:
    """The methods that the student learned by."""
    student = results.stages.get("student")
    named = student.method if student and student.method else results.settings.get("student.loss.method")
    return [name for name in str(named or Kd.name).split("+") if name != NO_METHOD]


def _stage(
    run: Path, name: str, summary: Any, model: dict[str, Any], history: list[Numbers], settings: dict[str, Any]
) -> Stage:
    summary = mapping({} if summary is None else summary, run / "summary.json", name)
    measures = {key: number(value) for key, value in summary.items()}
    return Stage(
        arch=one_line(model.get("arch", settings.get(f"{name}.arch", "unknown network"))),
        method=one_line(summary["method"]) if isinstance(summary.get("method"), str) else None,
        settings=_values(summary.get("settings", {}), run / "summary.json", f"{name}.settings"),
        measures={**measures, "parameters": number(model.get("parameters"))},
        per_class_accuracy=by_class(summary, "per_class_accuracy", run / "summary.json", name),
        by_class={of: by_class(summary, of, run / "summary.json", name) for of in CLASS_NUMBERS if of in summary},
        history=history,
    )


def _classes(run: Path, models: dict[str, dict[str, Any]], stages: dict[str, Stage]) -> list[str]:
    """The class names, in order. Numbers stand in for names where no model.json gives them."""
    lengths = {
        f"{name}.{of}": len(values)
        for name, stage in stages.items()
        for of, values in {"per_class_accuracy": stage.per_class_accuracy, **stage.by_class}.items()
        if values
    }
    names = [str(index) for index in range(max(lengths.values(), default=0))]
    for stage, model in models.items():
        given = class_names(model, run / stage / "model.json")
        if given is not None:
            names = given
            break
    for name, length in lengths.items():
        if length != len(names):
            raise UserError(f"{run / 'summary.json'}: {name} has {length} values for {len(names)} classes")
    return names


def _made_images(run: Path, stages: dict[str, Stage], classes: int) -> MadeImages | None:
    made = stages["student"].measures.get("images_made") if "student" in stages else None
    return read_made_images(run / "student" / "findings.safetensors", made, classes)


def _values(values: Any, path: Path, what: str) -> dict[str, Any]:
    """What `what` of the file holds and what is one level beneath, by dotted name, but for what is not plain."""
    found: dict[str, Any] = {}
    for name, value in mapping(values, path, what).items():
        beneath = value.items() if isinstance(value, dict) else [("", value)]
        for inner, item in beneath:
            dotted = one_line(f"{name}.{inner}" if inner else name)
            if isinstance(item, list) and all(map(_is_plain, item)):
                found[dotted] = [_plain(each) for each in item]
            elif _is_plain(item):
                found[dotted] = _plain(item)
    return found


def _settings(values: Any, kind: type, path: Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of the dataclass `kind` that `values` holds, by dotted name."""
    values = mapping(values, path, prefix.rstrip(".") or "it")
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


def in_force(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` without those of methods that the run does not use, of strong views unless its teacher has any, and of
    an attack unless there is one.
    """
    chosen = [
        *str(settings.get("teacher.loss.method")).split("+"),
        *str(settings.get("student.loss.method")).split("+"),
    ]
    unused = tuple(f"{stage}.loss.{setting_name(name)}." for stage in STAGES for name in METHODS if name not in chosen)
    if settings.get("teacher.loss.method", IntraClass.name) != IntraClass.name:
        unused += tuple(f"teacher.loss.{field.name}" for field in fields(IntraClassSettings))
    if not _strong_views(settings):
        unused += ("data.strong_augmentation.",)
    if settings.get("evaluation.attack") is None:
        unused += tuple(f"evaluation.{name}" for name in ("attack", "epsilon", "steps", "step_size"))
    return {name: value for name, value in settings.items() if not name.startswith(unused)}


def _strong_views(settings: dict[str, Any]) -> int:
    """How many views of the teacher's method in force are strong."""
    name = str(settings.get("teacher.loss.method"))
    method = METHODS.find(name, "method") if name in METHODS else None
    if method is None or not issubclass(method, TeacherMethod):
        return 0
    prefix = "teacher.loss." if method is IntraClass else f"teacher.loss.{setting_name(name)}."
    own = settings_type(method)
    given = {each.name: settings[prefix + each.name] for each in fields(own) if prefix + each.name in settings}
    with suppress(TypeError, ValueError):  # A weight that is a text, say.
        return method.strong_views_of(own(**given))
    return 0


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, float, str)) or (isinstance(value, int) and abs(value) < 2**64)


def _plain(value: Any) -> Any:
    return one_line(value) if isinstance(value, str) else value
