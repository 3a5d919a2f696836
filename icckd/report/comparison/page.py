"""compare.html: one page that needs nothing but itself."""

import html
from dataclasses import asdict

from icckd.report.comparison.classes import class_section
from icckd.report.comparison.curves import learning_curves, looks
from icckd.report.comparison.findings import findings, machines, notes, overview, seeds_text, title
from icckd.report.comparison.intervals import axis_head, axis_of, interval_row
from icckd.report.comparison.metrics import Metric, p_text
from icckd.report.comparison.results import Difference, Results
from icckd.report.results import in_force
from icckd.report.shell import settings_table, shell, shown
from icckd.settings import flat


def html_page(results: Results) -> str:
    """The page as text; the same results give the same text."""
    parts = [
        _header(results),
        _conclusions(results),
        _numbers(results),
        learning_curves(results),
        class_section(results),
        _runs(results),
        _settings(results),
    ]
    return shell(title(results), "\n".join(part for part in parts if part))


def _header(results: Results) -> str:
    sentences = "\n".join(f"<p>{html.escape(sentence)}</p>" for sentence in overview(results))
    return f"<header><h1>{html.escape(title(results))}</h1>\n{sentences}</header>"


def _conclusions(results: Results) -> str:
    parts = []
    for metric in results.metrics if results.others else []:
        items = "".join(
            f"<li>{html.escape(found.variant)}: <strong>{html.escape(found.verdict)}</strong>"
            f"{html.escape(found.reasons)}</li>\n"
            for found in findings(results, metric)
        )
        parts.append(f'<h3>{html.escape(metric.label)}</h3>\n<ul class="findings">\n{items}</ul>')
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes(results))
    body = "\n".join([*parts, f'<ul class="notes quiet">{items}</ul>'])
    return f"<section><h2>What can be concluded</h2>\n{body}</section>"


def _numbers(results: Results) -> str:
    parts = [
        f"<h3>{html.escape(metric.label)}</h3>\n{_means(results, metric)}\n{_differences(results, metric)}"
        for metric in results.metrics
    ]
    body = "\n".join(parts)
    return f"<section><h2>Means and differences</h2>\n{body}</section>"


def _means(results: Results, metric: Metric) -> str:
    by_variant = {variant: of[metric.name] for variant, of in results.estimates.items()}
    axis = axis_of(by_variant.values())
    rows = []
    for variant, of in by_variant.items():
        interval = metric.range(of.low, of.high)
        words = f"{variant}: mean {metric.value(of.mean)}, 95 % interval {interval}, {of.n} seeds"
        drawing = interval_row(axis, of, looks(results)[variant].colour, words)
        rows.append(
            f'<tr><th scope="row">{html.escape(variant)}</th><td>{drawing}</td>'
            f"{_number(metric.value(of.mean), interval)}{_number(metric.spread(of.sd))}{_number(str(of.n))}</tr>"
        )
    caption = "Each seed (dots), and their mean with its 95 % interval"
    return _table(caption, axis_head(axis, metric.tick), [("mean", "95 % interval"), ("sd", ""), ("n", "")], rows)


def _differences(results: Results, metric: Metric) -> str:
    by_variant = {variant: of[metric.name] for variant, of in results.differences.items()}
    if not by_variant:
        return ""
    axis = axis_of([of.estimate for of in by_variant.values()], zero=True)
    rows = []
    for variant, of in by_variant.items():
        interval = metric.between(of.estimate.low, of.estimate.high)
        words = f"{variant}: {metric.difference(of.estimate.mean)} {metric.unit}, 95 % interval {interval}"
        drawing = interval_row(axis, of.estimate, looks(results)[variant].colour, words)
        rows.append(
            f'<tr><th scope="row">{html.escape(variant)}</th><td>{drawing}</td>'
            f"{_number(metric.difference(of.estimate.mean), interval)}{_tests(of, metric)}</tr>"
        )
    caption = f"Less {results.comparison.baseline}, paired by seed"
    pairs = ("pairs", "")
    if metric.smallest is not None:
        caption += f"; how many pairs finding {metric.size(metric.smallest)} would need"
        pairs = ("pairs", "needed")
    heads = [(metric.unit or "difference", "95 % interval"), ("p", "Holm's"), pairs]
    return _table(caption, axis_head(axis, metric.tick_difference), heads, rows)


def _tests(of: Difference, metric: Metric) -> str:
    needed = seeds_text(of.needed) if metric.smallest is not None else ""
    return _number(p_text(of.p), p_text(of.adjusted)) + _number(str(of.estimate.n), needed)


def _number(number: str, below: str = "", cell: str = "td") -> str:
    """A cell with a number, and another below it."""
    second = f'<span class="meaning">{html.escape(below)}</span>' if below else ""
    scope = ' scope="col"' if cell == "th" else ""
    return f'<{cell}{scope} class="number">{html.escape(number)}{second}</{cell}>'


def _table(caption: str, axis: str, heads: list[tuple[str, str]], rows: list[str]) -> str:
    numbers = "".join(_number(head, below, "th") for head, below in heads)
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
    comparison = results.comparison
    base = in_force(flat(asdict(comparison.variants[comparison.baseline])))
    differing = set(next(iter(comparison.differing().values())))
    shared = {name: value for name, value in base.items() if name not in differing and name != "seed"}
    parts = [_differing(results), f"<p>All variants have these in common:</p>\n{settings_table(shared)}"]
    return f"<section><h2>Settings and environment</h2>\n{''.join(parts)}\n{_environment(results)}</section>"


def _differing(results: Results) -> str:
    """What the variants differ in: a row per setting, a column per variant."""
    by_variant = results.comparison.differing()
    names = list(next(iter(by_variant.values())))
    if not names:
        return ""
    heads = "".join(f'<th scope="col">{html.escape(variant)}</th>' for variant in by_variant)
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(shown(of[name]))}</td>" for of in by_variant.values())
        + "</tr>"
        for name in names
    )
    return f"""<div class="scroll"><table class="pairs"><caption>What the variants differ in</caption>
<thead><tr><th scope="col">Setting</th>{heads}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _environment(results: Results) -> str:
    rows = []
    for name, values in machines(results).items():
        total = sum(values.values())
        text = "; ".join(
            value if count == total and len(values) == 1 else f"{value} ({count} of {len(results.runs)} runs)"
            for value, count in values.items()
        )
        rows.append(f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(text)}</td></tr>')
    if not rows:
        return ""
    body = "\n".join(rows)
    return f'<table class="pairs"><caption>Computed with</caption>\n<tbody>\n{body}\n</tbody></table>'
