"""Each metric against a setting in which the variants differ: curves over its numbers, intervals by its texts."""

import html

from icckd.report.comparison.curves import series
from icckd.report.comparison.intervals import Axis, axis_head, axis_of, interval_group
from icckd.report.comparison.metrics import Metric
from icckd.report.comparison.results import Line, Results
from icckd.report.comparison.statistics import Estimate
from icckd.report.figures import Chart, Curve
from icckd.report.shell import figure

# As many curves over numbers as there are styles.
_STYLES = ("--", "-", "-.", ":")


def against_section(results: Results) -> str:
    """The section as HTML; empty where the comparison has no setting to draw against."""
    setting = results.comparison.against
    if setting is None:
        return ""
    if results.comparison.by_text:
        text, drawn = "Means of the seeds with their 95 % intervals, in each group in this order:", _groups
    else:
        text, drawn = "Points are means of the seeds, bands their 95 % intervals.", _curves
    figures = "\n".join(filter(None, (drawn(results, metric) for metric in results.metrics)))
    heading = f'<h2>Against {html.escape(setting)}</h2>\n<p class="quiet">{text}</p>\n{_legend(results)}'
    return f'<section>{heading}\n<div class="pair">\n{figures}\n</div></section>' if figures else ""


def _legend(results: Results) -> str:
    """The lines in their colours, where no chart says which they are."""
    lines = (f'<li class="{series(number)}">{html.escape(line.name)}</li>' for number, line in enumerate(results.lines))
    return f'<ul class="legend">{"".join(lines)}</ul>' if results.comparison.by_text else ""


def _groups(results: Results, metric: Metric) -> str:
    """A group for each text, with an interval for each line that has a variant there; empty where nothing is known."""
    known = [of[metric.name] for of in results.estimates.values()]
    if not any(of.n for of in known):
        return ""
    axis = axis_of(known, seeds=False)
    rows = "\n".join(_group(metric, axis, *group) for group in _members(results, metric).items())
    cut = "Lines that reach the edge go on." if axis.cut else ""
    return f"""<figure><h3>{html.escape(metric.label)}</h3>
<table class="intervals groups">
<thead><tr><td></td><th scope="col" aria-label="drawn">{axis_head(axis, metric.tick)}</th></tr></thead>
<tbody>
{rows}
</tbody></table>
<figcaption>{cut}</figcaption></figure>"""


_Member = tuple[str, str, Estimate]  # The line's name and colour, and what is known of its variant.


def _members(results: Results, metric: Metric) -> dict[str, list[_Member]]:
    """The groups by name; one, where every line has the same values in all, as teachers that are shared have."""

    def member(number: int, variant: str) -> _Member:
        return results.lines[number].name, series(number), results.estimates[variant][metric.name]

    lines = [
        {str(place): member(number, variant) for place, variant in line.variants.items()}
        for number, line in enumerate(results.lines)
    ]
    first = [next(iter(line.values())) for line in lines]
    if all(member == of for line, of in zip(lines, first, strict=True) for member in line.values()):
        return {"all": first}
    places = map(str, results.comparison.order())
    return {place: [line[place] for line in lines if place in line] for place in places}


def _group(metric: Metric, axis: Axis, name: str, members: list[_Member]) -> str:
    words = "; ".join(f"{line} {_words(metric, of)}" for line, _, of in members)
    drawing = interval_group(axis, [(of, colour) for _, colour, of in members], f"{name}: {words}")
    return f'<tr><th scope="row">{html.escape(name)}</th><td>{drawing}</td></tr>'


def _words(metric: Metric, of: Estimate) -> str:
    return f"{metric.value(of.mean)}, 95 % interval {metric.range(of.low, of.high)}"


def _curves(results: Results, metric: Metric) -> str:
    chart = _chart(results, metric)
    return figure(chart) if chart.curves else ""


def _chart(results: Results, metric: Metric) -> Chart:
    lines = [(number, line) for number, line in enumerate(results.lines) if len(line.variants) > 1]
    drawn = (_curve(results, metric, line, series(n), look) for (n, line), look in zip(lines, _STYLES, strict=False))
    curves = [curve for curve in drawn if any(value is not None for value in curve.values)]
    name = f"against-{metric.name.replace('.', '-').replace('_', '-')}"
    setting = str(results.comparison.against)
    caption = f"The first {len(_STYLES)} of {len(lines)} lines." if len(lines) > len(_STYLES) else ""
    return Chart(name, metric.label, caption, curves, percent=metric.percent, axis=setting)


def _curve(results: Results, metric: Metric, line: Line, colour: str, style: str) -> Curve:
    found = [results.estimates[variant][metric.name] for variant in line.variants.values()]
    band = [of.low for of in found], [of.high for of in found]
    places = [float(place) for place in line.variants]
    return Curve(line.name, colour, places, [of.mean for of in found], style, band)
