"""Values of seeds, their mean and its interval, drawn in a row of a table: the rows share one axis."""

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from icckd.report.comparison.statistics import Estimate

_MARGIN = 0.08  # Of the axis, free on either side, so that labels and dots have room.
_SMALLEST_SPAN = 0.02  # Where there is nothing but zeros.
_WIDEST = 1.5  # An interval of two or three seeds may be endless: beyond so many spans of the values it is cut off.
_GROUP_REM = 1.0  # How high a row is that shows no seeds.


@dataclass(frozen=True)
class Axis:
    """The values from `low` to `high`, with ticks.

    `zero`: whether a line stands at 0. `cut`: whether an interval goes on beyond the axis.
    """

    low: float
    high: float
    ticks: Sequence[float]
    zero: bool
    cut: bool

    def place(self, value: float) -> str:
        """Where `value` lies, as a share of the width; what is beyond the axis stays just beyond it."""
        share = _MARGIN + (1 - 2 * _MARGIN) * (value - self.low) / (self.high - self.low)
        return f"{100 * min(max(share, -0.1), 1.1):.2f}%"


def axis_of(estimates: Iterable[Estimate], *, zero: bool = False, seeds: bool = True) -> Axis:
    """An axis for all `estimates`, and for those of their `seeds` if these are drawn; with `zero` also for 0."""
    known = list(estimates)
    values = [value for of in known for value in _in_full(of, seeds)] + [0.0] * zero
    if not values:
        values = [0.0, 1.0]
    low, high = min(values), max(values)
    span = high - low or abs(low) or _SMALLEST_SPAN
    lows = [max(of.low, low - _WIDEST * span) for of in known if of.low is not None]
    highs = [min(of.high, high + _WIDEST * span) for of in known if of.high is not None]
    low, high = min([low, *lows]), max([high, *highs])
    cut = any((of.low or 0.0) < low or (of.high or 0.0) > high for of in known if of.low is not None)
    if low == high:
        low, high = low - span / 2, high + span / 2
    ticks = [float(tick) for tick in MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(low, high)]
    return Axis(low, high, [tick for tick in ticks if low <= tick <= high], zero, cut)


def _in_full(of: Estimate, seeds: bool) -> Iterable[float]:
    """What the axis has to reach: the seeds, or the interval, unless that is of two seeds and endless."""
    if not seeds and of.n > 2 and of.low is not None and of.high is not None:
        return of.low, of.high
    return of.values.values()


def axis_head(axis: Axis, form: Callable[[float], str]) -> str:
    """The axis' labels, as a heading of the column."""
    labels = "".join(
        f'<text x="{axis.place(tick)}" y="75%" text-anchor="middle">{html.escape(form(tick))}</text>'
        for tick in axis.ticks
    )
    return f'<svg class="interval axis" aria-hidden="true">{labels}</svg>'


def interval_row(axis: Axis, of: Estimate, colour: str, description: str) -> str:
    """A dot for each seed, and below them the mean and its interval; `description` says it in words."""
    marks = [_vertical(axis, tick, "tick") for tick in axis.ticks]
    if axis.zero:
        marks.append(_vertical(axis, 0.0, "zero"))
    marks += [f'<circle class="seed" cx="{axis.place(value)}" cy="35%" r="3"/>' for value in of.values.values()]
    marks += _mean(axis, of, "62%")
    label = html.escape(description)
    return f'<svg class="interval {colour}" role="img" aria-label="{label}">{"".join(marks)}</svg>'


def interval_group(axis: Axis, several: Sequence[tuple[Estimate, str]], description: str) -> str:
    """Means and intervals without their seeds, each in its colour, one below the other."""
    marks = [_vertical(axis, tick, "tick") for tick in axis.ticks]
    for number, (of, colour) in enumerate(several):
        height = f"{100 * (number + 0.5) / len(several):.1f}%"
        marks.append(f'<g class="{colour}">{"".join(_mean(axis, of, height))}</g>')
    style = f"height: {_GROUP_REM * len(several):.2f}rem"
    label = html.escape(description)
    return f'<svg class="interval" style="{style}" role="img" aria-label="{label}">{"".join(marks)}</svg>'


def _mean(axis: Axis, of: Estimate, height: str) -> list[str]:
    """The mean and its interval, as far as there are any."""
    marks = []
    if of.low is not None and of.high is not None:
        ends = f'x1="{axis.place(of.low)}" x2="{axis.place(of.high)}"'
        marks.append(f'<line class="range" {ends} y1="{height}" y2="{height}"/>')
    if of.mean is not None:
        marks.append(f'<circle class="mean" cx="{axis.place(of.mean)}" cy="{height}" r="4.5"/>')
    return marks


def _vertical(axis: Axis, value: float, kind: str) -> str:
    place = axis.place(value)
    return f'<line class="{kind}" x1="{place}" x2="{place}" y1="0" y2="100%"/>'
