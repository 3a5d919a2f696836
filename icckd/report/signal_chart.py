"""A window of signals as a small <svg> of lines, one above the other, in the page's colours."""

import html

import torch
from torch import Tensor

_MOST_CHANNELS, _MOST_POINTS = 6, 256
_WIDTH, _LANE = 256, 40
_COLOURS = ("series-1", "series-2", "series-3")


def signal_chart(signal: Tensor, low: Tensor, high: Tensor, description: str) -> str:
    """The first channels of `signal`, float (C, 1, L), from `low` to `high`, (C,) each, at evenly spaced samples.

    Values outside are drawn at the edge; a channel whose bounds agree is a line in the middle.
    """
    rows = signal[:_MOST_CHANNELS, 0].double()
    places = torch.linspace(0, rows.shape[1] - 1, min(rows.shape[1], _MOST_POINTS)).round().long()
    x = places * (_WIDTH / max(rows.shape[1] - 1, 1))
    lines = [
        f'<polyline class="{_COLOURS[number % len(_COLOURS)]}" points="{_points(x, y + number * _LANE)}"/>'
        for number, y in enumerate(_heights(rows[:, places], low[: len(rows)], high[: len(rows)]))
    ]
    box = f"0 0 {_WIDTH} {_LANE * len(rows)}"
    label = html.escape(description)
    return f'<svg class="signal" viewBox="{box}" role="img" aria-label="{label}">{"".join(lines)}</svg>'


def caption(channels: int) -> str:
    """What the lines are of windows of so many channels."""
    which = f" of the first {_MOST_CHANNELS} of {channels}" if channels > _MOST_CHANNELS else ""
    return f"Each line is a channel{which}, on one scale for all windows here."


def _heights(rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where values are drawn within a lane, downwards from its top: (C, points)."""
    low, span = low.double()[:, None], (high.double() - low.double())[:, None]
    share = torch.where(span > 0, (rows - low) / span.clamp_min(torch.finfo(torch.float64).tiny), 0.5)
    return _LANE * (0.95 - 0.9 * share.clamp(0, 1))


def _points(x: Tensor, y: Tensor) -> str:
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in zip(x.tolist(), y.tolist(), strict=True))
