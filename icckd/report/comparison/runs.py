"""The runs of a comparison, read from their folders; nothing in them is taken on trust."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icckd.errors import UserError
from icckd.report.reading import Numbers, mapping, number, one_line, read_history, read_object
from icckd.settings import STAGES
from icckd.settings.comparison import Comparison

RunKey = tuple[str, int]  # The variant and the seed.


@dataclass(frozen=True)
class Run:
    """A finished run: by stage its measures, class accuracies and record of each epoch (None where unknown).

    `classes`: the names of the classes, empty where no file gives them. `page`: whether it has a report.html.
    """

    measures: dict[str, Numbers]
    per_class_accuracy: dict[str, list[float | None]]
    history: dict[str, list[Numbers]]
    classes: list[str]
    environment: dict[str, str]
    page: bool

    def value(self, metric: str) -> float | None:
        """The metric "stage.name"."""
        stage, _, name = metric.partition(".")
        return self.measures.get(stage, {}).get(name)


def read_runs(folder: Path, comparison: Comparison) -> dict[RunKey, Run | None]:
    """Every run of the comparison, in order; None for one whose summary.json lacks a stage or is not there.

    Raises UserError where a file is broken.
    """
    return {
        (variant, seed): _read_run(folder / "runs" / variant / str(seed), comparison.stages)
        for variant in comparison.variants
        for seed in comparison.seeds
    }


def _read_run(run: Path, stages: tuple[str, ...]) -> Run | None:
    path = run / "summary.json"
    summary = read_object(path)
    if any(stage not in summary for stage in stages):
        return None
    given = {stage: mapping(summary[stage], path, stage) for stage in STAGES if stage in summary}
    environment = mapping(summary.get("environment", {}), path, "environment")
    return Run(
        measures={stage: {key: number(value) for key, value in of.items()} for stage, of in given.items()},
        per_class_accuracy={stage: _accuracies(of, path, stage) for stage, of in given.items()},
        history=read_history(run / "metrics.jsonl"),
        classes=_classes(run),
        environment={one_line(name): one_line(value) for name, value in environment.items() if value is not None},
        page=(run / "report.html").is_file(),
    )


def _accuracies(given: dict[str, Any], path: Path, stage: str) -> list[float | None]:
    values = given.get("per_class_accuracy", [])
    if not isinstance(values, list):
        raise UserError(f"{path}: {stage}.per_class_accuracy should be a list")
    return [number(value) for value in values]


def _classes(run: Path) -> list[str]:
    for stage in STAGES:
        path = run / stage / "model.json"
        names = read_object(path).get("classes")
        if isinstance(names, list):
            return [one_line(name) for name in names]
        if names is not None:
            raise UserError(f"{path}: classes should be a list of names")
    return []
