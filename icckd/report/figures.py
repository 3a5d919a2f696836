"""The report's curves as SVG whose colours are the page's CSS variables, so that they follow light and dark mode."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

# Matplotlib wants real colours: it is given these, and the SVG then gets the variables' names in their place.
SERIES = 5  # How many colours a page has for what is compared with a baseline.
_NAMES = ("teacher", "student", "ink", "faint", *(f"series-{number + 1}" for number in range(SERIES)))
_COLOURS = {name: f"#{place:06x}" for place, name in enumerate(_NAMES, start=1)}
_INK, _FAINT = _COLOURS["ink"], _COLOURS["faint"]
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "icckd",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
}
_INCHES, _SCATTER_INCHES = (4.0, 2.7), (5.4, 4.2)
_LOG_FROM_RATIO = 20
# The width of a legend per inch of its figure, and of a line with the space around it, in letters.
_LEGEND_LETTERS, _LEGEND_KEY = 12.5, 7
_LONGEST_LABEL = 16


Style = str | tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Curve:
    """One line: a value per epoch (None leaves a gap), in the page's colour of that name: "teacher", "series-1".

    `epochs` are whatever else the chart's axis shows where that is not epochs. `band`: the lowest and the highest value
    at each, shaded.
    """

    label: str
    colour: str
    epochs: Sequence[float]
    values: Sequence[float | None]
    style: Style = "-"
    band: tuple[Sequence[float | None], Sequence[float | None]] | None = None


@dataclass(frozen=True)
class Chart:
    """Curves that share one pair of axes. `name` (letters, digits and hyphens) is unique among a page's charts.

    `logarithmic` is followed only where the values are positive and span enough to need it. `threshold` draws a line at
    this δ, `zero` one at 0. `axis`: what the curves go over.
    """

    name: str
    title: str
    caption: str
    curves: list[Curve]
    percent: bool = False
    logarithmic: bool = False
    threshold: float | None = None
    zero: bool = False
    axis: str = "epoch"


@dataclass(frozen=True)
class Points:
    """Points of one kind, in the page's colour of that name and with a marker of Matplotlib's."""

    label: str
    colour: str
    marker: str
    across: Sequence[float]
    up: Sequence[float]


@dataclass(frozen=True)
class Cloud:
    """Points that share one pair of axes, which are called `axes`; `name` as a Chart's."""

    name: str
    title: str
    caption: str
    kinds: list[Points]
    axes: tuple[str, str]


def short_label(name: str) -> str:
    """`name`, or its beginning, for a legend of many."""
    return name if len(name) <= _LONGEST_LABEL else name[: _LONGEST_LABEL - 1] + "…"


def scatter_plot(cloud: Cloud) -> str:
    """The points as an <svg> element, as `line_chart` gives one."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SCATTER_INCHES, layout="constrained")
        axes = figure.add_subplot()
        for kind in cloud.kinds:
            colour = _COLOURS[kind.colour]
            axes.plot(
                kind.across,
                kind.up,
                linestyle="",
                marker=kind.marker,
                markersize=4,
                color=colour,
                markeredgecolor=colour,
                alpha=0.7,
                markeredgewidth=0.8,
                label=kind.label,
            )
        axes.set_xlabel(cloud.axes[0])
        axes.set_ylabel(cloud.axes[1])
        axes.tick_params(labelbottom=False, labelleft=False, length=0)
        _legend(axes, [kind.label for kind in cloud.kinds], _SCATTER_INCHES[0])
        return _svg(figure, cloud.name)


def line_chart(chart: Chart) -> str:
    """The curves as an <svg> element for a page whose style sheet defines the colours.

    `chart.name` keeps the element's ids apart from other figures' on the page. The same chart gives the same text.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_INCHES, layout="constrained")
        axes = figure.add_subplot()
        for curve in chart.curves:
            if curve.band is not None:
                low, high = map(_gaps, curve.band)
                axes.fill_between(curve.epochs, low, high, color=_COLOURS[curve.colour], alpha=0.2, linewidth=0)
            axes.plot(
                curve.epochs,
                _gaps(curve.values),
                linestyle=curve.style,
                color=_COLOURS[curve.colour],
                label=curve.label,
                linewidth=1.8,
                marker="o" if len(curve.epochs) <= 40 else None,
                markersize=3,
            )
        if chart.threshold is not None:
            label = f"δ = {chart.threshold:g}"
            axes.axhline(chart.threshold, color=_INK, linestyle=(0, (1, 2)), linewidth=1.2, label=label)
        if chart.zero:
            axes.axhline(0, color=_INK, linewidth=1)
        if chart.logarithmic and _spans_much(chart.curves):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if chart.percent:
            axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        whole = MaxNLocator(integer=True, min_n_ticks=1)
        ticks = whole if chart.axis == "epoch" else MaxNLocator(6, steps=[1, 2, 5, 10])
        axes.xaxis.set_major_locator(ticks)
        axes.set_xlabel(chart.axis)
        _legend(axes, [curve.label for curve in chart.curves], _INCHES[0])
        return _svg(figure, chart.name)


def _legend(axes: Axes, labels: Sequence[str], inches: float) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=_legend_columns(labels, inches),
        frameon=False,
        borderpad=0,
        handlelength=1.7,
        columnspacing=1.2,
    )


def _legend_columns(labels: Sequence[str], inches: float) -> int:
    """Into how many columns, three at most, the labels can be divided within a figure of that width."""
    for columns in (3, 2):
        longest = [max(map(len, part)) for part in np.array_split(labels, columns) if len(part)]
        if sum(longest) + columns * _LEGEND_KEY <= _LEGEND_LETTERS * inches:
            return columns
    return 1


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _spans_much(curves: Sequence[Curve]) -> bool:
    values = [value for curve in curves for value in curve.values if value is not None]
    return bool(values) and min(values) > 0 and max(values) > _LOG_FROM_RATIO * min(values)


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| (?:width|height)="[\d.]+pt"', "", text)
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour_name, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{colour_name})")
    return text
