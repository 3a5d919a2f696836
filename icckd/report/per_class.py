"""The accuracy of each class, the hardest first, and what else is known of it: a table for the page."""

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from icckd.report.results import Results, Stage
from icckd.report.wording import decimal, formatted, percent

SHOWN_CLASSES = 20
# What the columns of further numbers are called, and how these are written.
_FURTHER = {
    "per_class_robust_accuracy": ("attacked", percent),
    "adversarial_temperatures": ("temperature, attacked", decimal),
    "natural_temperatures": ("temperature", decimal),
}


@dataclass(frozen=True)
class ClassAccuracy:
    """A class's name, its accuracy by stage (None where it has no test images), and further numbers by column."""

    name: str
    by_stage: dict[str, float | None]
    further: dict[str, str] = field(default_factory=dict)


def hardest_first(results: Results) -> list[ClassAccuracy]:
    """Every class, by rising accuracy of the student (of the teacher where there is no student)."""
    stages = {name: stage for name, stage in results.stages.items() if stage.per_class_accuracy}
    if not stages:
        return []
    further = {column: values for stage in stages.items() for column, values in _further(*stage)}
    rows = [
        ClassAccuracy(
            name,
            {stage: values.per_class_accuracy[index] for stage, values in stages.items()},
            {column: values[index] for column, values in further.items()},
        )
        for index, name in enumerate(results.classes)
    ]
    return sorted(rows, key=lambda row: [math.inf if v is None else v for v in reversed(row.by_stage.values())])


def _further(name: str, stage: Stage) -> Iterator[tuple[str, list[str]]]:
    """Columns of further numbers of a stage: what each is called, and its text for each class."""
    for key, (column, form) in _FURTHER.items():
        if values := stage.by_class.get(key):
            yield f"{name}, {column}", [formatted(value, form) for value in values]


def per_class_section(results: Results) -> str:
    """The section as HTML, empty without values: the hardest classes, and the others folded away."""
    rows = hardest_first(results)
    if not rows:
        return ""
    values = [value for row in rows for value in row.by_stage.values() if value is not None]
    low = math.floor(10 * min(values, default=0.0)) / 10
    low = min(low, 0.9)
    count = len(rows)
    shown = rows if count <= 1.5 * SHOWN_CLASSES else rows[:SHOWN_CLASSES]
    text = "The hardest first." if shown is rows else f"The hardest {len(shown)} of {count} classes."
    section = f'<section><h2>Accuracy by class</h2>\n<p class="quiet">{text}</p>\n{_table(shown, low)}'
    if shown is not rows:
        section += f"\n<details><summary>The other {count - len(shown)} classes</summary>\n"
        section += f"{_table(rows[len(shown) :], low)}</details>"
    return section + "</section>"


def numbers_of(row: ClassAccuracy) -> list[str]:
    """What the table says of a class, as text: its accuracies, then the further numbers."""
    return [*(formatted(value, percent) for value in row.by_stage.values()), *row.further.values()]


def _table(rows: list[ClassAccuracy], low: float) -> str:
    heads = "".join(f'<th scope="col" class="number {stage}">{stage}</th>' for stage in rows[0].by_stage)
    heads += "".join(f'<th scope="col" class="number">{column}</th>' for column in rows[0].further)
    scale = f'<span class="scale"><span>{low:.0%}</span><span>100%</span></span>'
    body = "\n".join(_row(row, low) for row in rows)
    return f"""<table class="classes">
<thead><tr><th scope="col">class</th><th scope="col" aria-label="accuracy">{scale}</th>{heads}</tr></thead>
<tbody>
{body}
</tbody></table>"""


def _row(row: ClassAccuracy, low: float) -> str:
    dots = "".join(
        f'<span class="dot {stage}" style="left:{100 * (value - low) / (1 - low):.2f}%"></span>'
        for stage, value in row.by_stage.items()
        if value is not None
    )
    numbers = "".join(f'<td class="number">{text}</td>' for text in numbers_of(row))
    return f'<tr><th scope="row">{html.escape(row.name)}</th><td><span class="track">{dots}</span></td>{numbers}</tr>'
