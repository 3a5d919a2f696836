"""report.md: the same numbers for a terminal."""

from collections.abc import Sequence

from icckd.report.charts import sections
from icckd.report.class_augmentation import class_augmentation_text
from icckd.report.disparity import disparity_text
from icckd.report.federated import federated_text
from icckd.report.figures import Curve
from icckd.report.hidden import hidden_text
from icckd.report.per_class import SHOWN_CLASSES, hardest_first, numbers_of
from icckd.report.recipe import recipe
from icckd.report.results import Results
from icckd.report.tables import escaped, table
from icckd.report.wording import findings, formatted, measures, notes, title

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDTH = 30


def markdown_page(results: Results) -> str:
    """The page as text; the same results give the same text."""
    parts = [f"# {escaped(title(results))}"]
    parts += [escaped(sentence) for sentence in findings(results)]
    parts += [_main_numbers(results), "\n".join(f"- {escaped(note)}" for note in notes(results))]
    parts += [
        _curves(results),
        hidden_text(results),
        disparity_text(results),
        class_augmentation_text(results.class_augmentation),
        federated_text(results.federation),
        _classes(results),
    ]
    parts += [_pairs("In force", recipe(results)), _pairs("Computed with", list(results.environment.items()))]
    return "\n\n".join(part for part in parts if part) + "\n"


def sparkline(values: Sequence[float | None]) -> str:
    """`values` as up to 30 block characters from their smallest to their largest; a space where there is none."""
    if len(values) > _WIDTH:
        values = [values[round(i * (len(values) - 1) / (_WIDTH - 1))] for i in range(_WIDTH)]
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    step = (high - low) / (len(_BLOCKS) - 1) or 1.0
    return "".join(" " if value is None else _BLOCKS[round((value - low) / step)] for value in values)


def _main_numbers(results: Results) -> str:
    if not results.stages:
        return ""
    heads = ["", *(f"{name} ({stage.arch})" for name, stage in results.stages.items())]
    rows = [
        [
            measure.label,
            *(formatted(stage.measures.get(measure.key), measure.form) for stage in results.stages.values()),
        ]
        for measure in measures(results)
    ]
    return table(heads, rows)


def _curves(results: Results) -> str:
    rows = [
        _curve_row(chart.title, curve)
        for section in sections(results)
        for chart in section.charts
        for curve in chart.curves
    ]
    if not rows:
        return ""
    return "## Over training\n\n" + table(["", "curve", "first epoch → last", "first", "last"], rows, text_columns=3)


def _curve_row(chart_title: str, curve: Curve) -> list[str]:
    known = [value for value in curve.values if value is not None]
    return [chart_title, curve.label, sparkline(curve.values), f"{known[0]:.4g}", f"{known[-1]:.4g}"]


def _classes(results: Results) -> str:
    rows = hardest_first(results)
    if not rows:
        return ""
    shown = rows[:SHOWN_CLASSES]
    heading = "Accuracy by class, hardest first"
    if len(shown) < len(rows):
        heading += f" ({len(shown)} of {len(rows)})"
    cells = [[row.name, *numbers_of(row)] for row in shown]
    return f"## {heading}\n\n" + table(["class", *rows[0].by_stage, *rows[0].further], cells)


def _pairs(heading: str, pairs: list[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    return f"## {heading}\n\n" + "\n".join(f"- {escaped(name)}: {escaped(text)}" for name, text in pairs)
