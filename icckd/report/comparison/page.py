"""compare.html: one page that needs nothing but itself."""

import html
from dataclasses import asdict
from typing import Any

from icckd.report.comparison.against import against_section
from icckd.report.comparison.classes import class_section
from icckd.report.comparison.curves import learning_curves, looks
from icckd.report.comparison.every_difference import every_difference
from icckd.report.comparison.findings import at_a_glance, findings, listed, notes, overview, seeds_text, title
from icckd.report.comparison.intervals import Axis, axis_head, axis_of, interval_row
from icckd.report.comparison.metrics import Metric, p_text
from icckd.report.comparison.results import Difference, Results
from icckd.report.results import in_force
from icckd.report.shell import header, pairs_table, settings_table, shell
from icckd.report.wording import UNKNOWN
from icckd.settings import flat
from icckd.settings.names import shown

_FEW = 4  # Findings that are read at once.
_MANY = 8  # Variants whose tables fit on a screen.


def html_page(results: Results) -> str:
    """The page as text; the same results give the same text."""
    parts = [
        header(title(results), overview(results)),
        _conclusions(results),
        against_section(results),
        _numbers(results),
        learning_curves(results),
        class_section(results),
        _runs(results),
        _settings(results),
    ]
    return shell(title(results), "\n".join(part for part in parts if part))


def _conclusions(results: Results) -> str:
    found = [(metric.label, at_a_glance(results, metric)) for metric in results.metrics if results.others]
    items = "\n".join(
        f"<li><strong>{html.escape(label)}:</strong> {html.escape(sentences)}</li>" for label, sentences in found
    )
    further = "".join(f"<li>{html.escape(note)}</li>" for note in notes(results))
    glance = f'<ul class="findings">\n{items}</ul>\n' if found else ""
    table = every_difference(results) if len(results.others) > _FEW else ""
    return f'<section><h2>What can be concluded</h2>\n{table}{glance}<ul class="notes quiet">{further}</ul></section>'


def _numbers(results: Results) -> str:
    """The tables of each metric; of many variants they are long, and folded away but for the first's."""
    parts = []
    for metric in results.metrics:
        tables = f"{_means(results, metric)}\n{_differences(results, metric)}\n{_findings(results, metric)}"
        if len(results.comparison.variants) <= _MANY:
            parts.append(f"<h3>{html.escape(metric.label)}</h3>\n{tables}")
        else:
            unfolded = " open" if metric is results.metrics[0] else ""
            parts.append(f"<details{unfolded}><summary>{html.escape(metric.label)}</summary>\n{tables}</details>")
    body = "\n".join(parts)
    return f"<section><h2>Means and differences</h2>\n{body}</section>"


def _findings(results: Results, metric: Metric) -> str:
    """What the tables say in words; folded away where it is long."""
    said = [
        f"<li>{html.escape(listed(found.variants))}: <strong>{html.escape(found.verdict)}</strong>"
        f"{html.escape(found.reasons)}</li>"
        for found in findings(results, metric)
    ]
    if not said:
        return ""
    words = '<ul class="findings">\n' + "\n".join(said) + "</ul>"
    return words if len(said) <= _FEW else f"<details><summary>In words</summary>\n{words}</details>"


def _means(results: Results, metric: Metric) -> str:
    by_variant = {variant: of[metric.name] for variant, of in results.estimates.items()}
    axis = axis_of(by_variant.values())
    rows, colours = [], looks(results)
    for variant, of in by_variant.items():
        interval = metric.range(of.low, of.high)
        words = f"{variant}: mean {metric.value(of.mean)}, 95 % interval {interval}, {of.n} seeds"
        drawing = interval_row(axis, of, colours[variant].colour, words)
        rows.append(
            f'<tr><th scope="row">{html.escape(variant)}</th><td>{drawing}</td>'
            f"{_cell(metric.value(of.mean), interval)}{_cell(metric.spread(of.sd))}{_cell(str(of.n))}</tr>"
        )
    caption = "Each seed (dots), and their mean with its 95 % interval"
    heads = [("mean", "95 % interval"), ("sd", ""), ("n", "")]
    return _table(caption + _cut(axis), axis_head(axis, metric.tick), heads, rows)


def _differences(results: Results, metric: Metric) -> str:
    by_variant = {variant: of[metric.name] for variant, of in results.differences.items()}
    if not by_variant:
        return ""
    axis = axis_of([of.estimate for of in by_variant.values()], zero=True)
    rows, colours = [], looks(results)
    for variant, of in by_variant.items():
        interval = metric.between(of.estimate.low, of.estimate.high)
        words = f"{variant}: {metric.difference(of.estimate.mean)} {metric.unit}, 95 % interval {interval}"
        drawing = interval_row(axis, of.estimate, colours[variant].colour, words)
        rows.append(
            f'<tr><th scope="row">{html.escape(variant)}</th><td>{drawing}</td>'
            f"{_cell(metric.difference(of.estimate.mean), interval)}{_tests(of, metric)}</tr>"
        )
    caption = f"Less {results.baseline_in_words}, paired by seed"
    pairs = ("pairs", "")
    if metric.smallest is not None:
        caption += f"; how many pairs finding {metric.size(metric.smallest)} would need"
        pairs = ("pairs", "needed")
    heads = [(metric.unit or "difference", "95 % interval"), ("p", "Holm's"), pairs]
    return _table(caption + _cut(axis), axis_head(axis, metric.tick_difference), heads, rows)


def _cut(axis: Axis) -> str:
    return "; lines that reach the edge go on" if axis.cut else ""


def _tests(of: Difference, metric: Metric) -> str:
    needed = seeds_text(of.needed) if metric.smallest is not None else ""
    return _cell(p_text(of.p), p_text(of.adjusted)) + _cell(str(of.estimate.n), needed)


def _cell(number: str, below: str = "", cell: str = "td") -> str:
    """A cell with a number, and another below it."""
    second = f'<span class="meaning">{html.escape(below)}</span>' if below not in ("", UNKNOWN) else ""
    scope = ' scope="col"' if cell == "th" else ""
    return f'<{cell}{scope} class="number">{html.escape(number)}{second}</{cell}>'


def _table(caption: str, axis: str, heads: list[tuple[str, str]], rows: list[str]) -> str:
    numbers = "".join(_cell(head, below, "th") for head, below in heads)
    body = "\n".join(rows)
    return f"""<table class="intervals"><caption>{html.escape(caption)}</caption>
<thead><tr><th scope="col">variant</th><th scope="col" aria-label="drawn">{axis}</th>{numbers}</tr></thead>
<tbody>
{body}
</tbody></table>"""


def _runs(results: Results) -> str:
    heads = "".join(f'<th scope="col" class="number">{html.escape(metric.label)}</th>' for metric in results.metrics)
    rows = "\n".join(
        _run(results, variant, seed) for variant in results.comparison.variants for seed in results.comparison.seeds
    )
    count = len(results.runs) + len(results.unfinished)
    return f"""<section><h2>Runs</h2>
<details><summary>All {count} runs</summary>
<div class="scroll"><table class="runs">
<thead><tr><th scope="col">variant</th><th scope="col" class="number">seed</th>{heads}</tr></thead>
<tbody>
{rows}
</tbody></table></div></details></section>"""


def _run(results: Results, variant: str, seed: int) -> str:
    run = results.runs.get((variant, seed))
    name = html.escape(variant)
    if run is not None and run.page:
        name = f'<a href="runs/{name}/{seed}/report.html">{name}</a>'
    if run is None:
        cells = f'<td class="quiet" colspan="{len(results.metrics)}">not finished</td>'
    else:
        values = (metric.value(run.value(metric.name)) for metric in results.metrics)
        cells = "".join(f'<td class="number">{value}</td>' for value in values)
    return f'<tr><th scope="row">{name}</th><td class="number">{seed}</td>{cells}</tr>'


def _settings(results: Results) -> str:
    parts = [
        _differing(results),
        settings_table(_in_common(results), heading="Settings in common"),
        _environment(results),
    ]
    return "<section><h2>Settings and environment</h2>\n" + "\n".join(part for part in parts if part) + "</section>"


def _in_common(results: Results) -> dict[str, Any]:
    """The settings that all variants share and any of them uses."""
    comparison = results.comparison
    own = {"seed", *next(iter(comparison.differing().values()))}
    used = {
        name: value
        for settings in comparison.variants.values()
        for name, value in in_force(flat(asdict(settings))).items()
    }
    return {name: value for name, value in used.items() if name not in own}


def _differing(results: Results) -> str:
    """What the variants differ in: whichever are more, settings or variants, have a row each."""
    by_variant = results.comparison.differing()
    names = list(next(iter(by_variant.values())))
    if not names:
        return ""
    rows = by_variant
    if len(names) >= len(by_variant):
        rows = {name: {variant: of[name] for variant, of in by_variant.items()} for name in names}
    heads = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in next(iter(rows.values())))
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(row)}</th>'
        + "".join(f"<td>{html.escape(shown(value))}</td>" for value in cells.values())
        + "</tr>"
        for row, cells in rows.items()
    )
    return f"""<div class="scroll"><table class="pairs"><caption>What the variants differ in</caption>
<thead><tr><td></td>{heads}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _environment(results: Results) -> str:
    pairs = []
    for name, values in results.environments.items():
        shared, of = len(values) == 1, f"of {len(results.runs)} runs"
        pairs.append((name, "; ".join(value if shared else f"{value} ({n} {of})" for value, n in values.items())))
    return pairs_table("Computed with", pairs)
