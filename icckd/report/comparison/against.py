"""Each metric against a setting in which the variants differ."""

import html
from collections.abc import Iterable
from itertools import takewhile

from icckd.report.comparison.metrics import Metric
from icckd.report.comparison.results import Results
from icckd.report.figures import Chart, Curve
from icckd.report.shell import figure

# As many lines as the page has colours and styles for.
_LOOKS = (("ink", "--"), ("series-1", "-"), ("series-2", "-."), ("series-3", ":"))


def against_section(results: Results) -> str:
    """The section as HTML; empty where the comparison has no setting to draw against."""
    setting = results.comparison.against
    if setting is None:
        return ""
    figures = "\n".join(figure(chart) for metric in results.metrics if (chart := _chart(results, metric)).curves)
    text = "Points are means of the seeds, bands their 95 % intervals."
    heading = f'<h2>Against {html.escape(setting)}</h2>\n<p class="quiet">{text}</p>'
    return f'<section>{heading}\n<div class="pair">\n{figures}\n</div></section>' if figures else ""


def _chart(results: Results, metric: Metric) -> Chart:
    lines = [line for line in results.comparison.lines() if len(line) > 1]
    all_lines = (_curve(results, metric, line, *look) for line, look in zip(lines, _LOOKS, strict=False))
    curves = [curve for curve in all_lines if any(value is not None for value in curve.values)]
    name = f"against-{metric.name.replace('.', '-').replace('_', '-')}"
    setting = str(results.comparison.against)
    caption = f"The first {len(_LOOKS)} of {len(lines)} lines." if len(lines) > len(_LOOKS) else ""
    return Chart(name, metric.label, caption, curves, percent=metric.percent, axis=setting)


def _curve(results: Results, metric: Metric, line: dict[float, str], colour: str, style: str) -> Curve:
    found = [results.estimates[variant][metric.name] for variant in line.values()]
    label = _common_start(line.values()).rstrip("-_+=.0") or next(iter(line.values()))
    band = [of.low for of in found], [of.high for of in found]
    return Curve(label, colour, list(line), [of.mean for of in found], style, band)


def _common_start(names: Iterable[str]) -> str:
    return "".join(letters[0] for letters in takewhile(lambda x: len(set(x)) == 1, zip(*names, strict=False)))
