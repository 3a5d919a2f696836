"""The runs of a comparison, read from their folders; nothing in them is taken on trust."""

from dataclasses import dataclass
from pathlib import Path

from icckd.report.reading import (
    Numbers,
    by_class,
    class_names,
    environment,
    mapping,
    number,
    read_history,
    read_object,
)
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
    return Run(
        measures={stage: {key: number(value) for key, value in of.items()} for stage, of in given.items()},
        per_class_accuracy={stage: by_class(of, "per_class_accuracy", path, stage) for stage, of in given.items()},
        history=read_history(run / "metrics.jsonl"),
        classes=_classes(run),
        environment=environment(summary, path),
        page=(run / "report.html").is_file(),
    )


def _classes(run: Path) -> list[str]:
    paths = (run / stage / "model.json" for stage in STAGES)
    return next((names for path in paths if (names := class_names(read_object(path), path)) is not None), [])
