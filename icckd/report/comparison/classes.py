"""Which classes a variant recognises better or worse than the baseline does."""

import html
from dataclasses import dataclass

from icckd.report.comparison.curves import looks
from icckd.report.comparison.intervals import Axis, axis_head, axis_of, interval_row
from icckd.report.comparison.metrics import Metric, metric_of
from icckd.report.comparison.results import Results
from icckd.report.comparison.runs import Run
from icckd.report.comparison.statistics import LEVEL, Estimate, paired

_SHOWN = 6  # Of the gains and of the losses each; the others are folded away.
_FEW = 15
_UNFOLDED = 4  # Variants; of more each is folded away.


@dataclass(frozen=True)
class ClassDifference:
    """How much more of a class's images a variant gets right than the baseline."""

    name: str
    estimate: Estimate


def class_differences(results: Results, variant: str) -> list[ClassDifference]:
    """Every class with two pairs of runs or more, the largest gain first."""
    stage = _stage(results)
    ours, base = (_accuracies(results.runs_of(name), stage) for name in (variant, results.baseline_of[variant]))
    counts = {len(values) for of in (ours, base) for values in of.values()}
    if len(counts) != 1:
        return []
    names = _names(results, counts.pop())
    found = [
        ClassDifference(name, paired(_of_class(ours, index), _of_class(base, index)))
        for index, name in enumerate(names)
    ]
    return sorted((of for of in found if of.estimate.n >= 2), key=lambda of: -(of.estimate.mean or 0.0))


def class_section(results: Results) -> str:
    """The section as HTML; empty where no variant has two pairs of runs with class accuracies."""
    by_variant = {variant: class_differences(results, variant) for variant in results.others}
    tables = "\n".join(_variant(results, variant, rows) for variant, rows in by_variant.items() if rows)
    if not tables:
        return ""
    text = (
        f"The {_stage(results)}'s accuracy on each class, less that of {results.baseline_in_words}, in points: mean "
        "of the pairs of runs with its 95 % interval."
    )
    return f'<section><h2>Differences by class</h2>\n<p class="quiet">{html.escape(text)}</p>\n{tables}</section>'


def _variant(results: Results, variant: str, rows: list[ClassDifference]) -> str:
    apart = sum(not (of.estimate.low or 0.0) <= 0 <= (of.estimate.high or 0.0) for of in rows)
    chance = (1 - LEVEL) * len(rows)
    text = f"{apart} of {len(rows)} classes have an interval without 0; by chance about {chance:.0f} would."
    gains, losses, others = _parts(rows)
    metric = metric_of(f"{_stage(results)}.class_accuracy", results.comparison)
    axis = axis_of([of.estimate for of in gains + losses], zero=True)
    colour = looks(results)[variant].colour
    tables = "".join(_table(part, axis, metric, colour) for part in (gains, losses) if part)
    section = f'<p>{text}</p>\n<div class="pair">{tables}</div>'
    if others:
        section += f"\n<details><summary>The other {len(others)} classes</summary>\n{_folded(others, metric)}</details>"
    name = f'<span class="{colour}">{html.escape(variant)}</span>'
    if len(results.others) > _UNFOLDED:
        return f"<details><summary>{name}</summary>\n{section}</details>"
    return f"<h3>{name}</h3>\n{section}"


def _parts(rows: list[ClassDifference]) -> tuple[list[ClassDifference], list[ClassDifference], list[ClassDifference]]:
    """The largest gains, the largest losses, and the rest; where classes are few, the upper and the lower half."""
    if len(rows) <= _FEW:
        middle = (len(rows) + 1) // 2
        return rows[:middle], rows[middle:], []
    return rows[:_SHOWN], rows[: -_SHOWN - 1 : -1], rows[_SHOWN:-_SHOWN]


def _table(rows: list[ClassDifference], axis: Axis, metric: Metric, colour: str) -> str:
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(of.name)}</th>'
        f"<td>{interval_row(axis, of.estimate, colour, _words(of, metric))}</td>{_number(of, metric)}</tr>"
        for of in rows
    )
    head = f'<th scope="col" aria-label="drawn">{axis_head(axis, metric.tick_difference)}</th>'
    return f"""<table class="intervals">
<thead><tr><th scope="col">class</th>{head}<th scope="col" class="number">points</th></tr></thead>
<tbody>
{body}
</tbody></table>"""


def _folded(rows: list[ClassDifference], metric: Metric) -> str:
    body = "\n".join(f'<tr><th scope="row">{html.escape(of.name)}</th>{_number(of, metric)}</tr>' for of in rows)
    return f"""<table class="pairs">
<thead><tr><th scope="col">class</th><th scope="col" class="number">points</th></tr></thead>
<tbody>
{body}
</tbody></table>"""


def _number(of: ClassDifference, metric: Metric) -> str:
    interval = metric.between(of.estimate.low, of.estimate.high)
    return f'<td class="number">{metric.difference(of.estimate.mean)}<span class="meaning">{interval}</span></td>'


def _words(of: ClassDifference, metric: Metric) -> str:
    interval = metric.between(of.estimate.low, of.estimate.high)
    return f"{of.name}: {metric.difference(of.estimate.mean)} points, 95 % interval {interval}"


def _stage(results: Results) -> str:
    """The last stage whose class accuracies are known; the last of all where none are."""
    known = [
        stage
        for stage in results.comparison.stages
        if any(run.per_class_accuracy.get(stage) for run in results.runs.values())
    ]
    return (known or list(results.comparison.stages))[-1]


def _accuracies(runs: dict[int, Run], stage: str) -> dict[int, list[float | None]]:
    found = {seed: run.per_class_accuracy.get(stage, []) for seed, run in runs.items()}
    return {seed: values for seed, values in found.items() if values}


def _of_class(accuracies: dict[int, list[float | None]], index: int) -> dict[int, float]:
    found = {seed: values[index] for seed, values in accuracies.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _names(results: Results, count: int) -> list[str]:
    """The classes' names where a model.json gives as many, their numbers otherwise."""
    named = (run.classes for run in results.runs.values() if len(run.classes) == count)
    return next(named, [str(index) for index in range(count)])
