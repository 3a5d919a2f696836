"""Draws where each embedding of a small batch travels: `python -m bench.distributed.picture FIGURE.svg`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from bench.plot import COLOURS, FLOOR
from icckd.files import write_whole

RANKS = 3
# The classes of each rank's rows, each with its colour.
LABELS = ((0, 4, 2, 1, 0, 5), (3, 1, 0, 5, 2, 4), (4, 2, 3, 5, 1, 3))
CLASS_COLOURS = (*COLOURS.values(), "#e69f00")
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "icckd", "font.family": "DejaVu Sans", "font.size": 10}
# A row, the distance from one to the next, and from a rank's left to its owners' or its gathered rows' left.
_WIDTH, _HEIGHT, _PITCH, _ACROSS = 0.7, 0.28, 0.42, 3.6
_RANK_HEIGHT = len(LABELS[0]) * _PITCH + 0.62


def draw(path: Path) -> None:
    """Two panels: each row to the owner of its class and its gradient back, and all rows to all ranks."""
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(10.6, 5.6), layout="constrained")
        owner, everybody = figure.subplots(1, 2)
        _by_owner(owner)
        _all_gather(everybody)
        for axes in (owner, everybody):
            axes.set_axis_off()
        figure.supxlabel("a number and colour: a class; dotted: on the same rank already", fontsize=10)
        write_whole(
            path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=130, metadata=_undated(path))
        )


def _by_owner(axes: Axes) -> None:
    places = _owned()
    _frame(axes, "by class owner: a row travels once, its gradient once back")
    for rank, labels in enumerate(LABELS):
        _box(axes, 0, rank, f"rank {rank}")
        owned = [c for c in range(len(CLASS_COLOURS)) if c % RANKS == rank]
        _box(axes, _ACROSS, rank, f"rank {rank} owns {' and '.join(map(str, owned))}")
        for k, label in enumerate(labels):
            _row(axes, 0, rank, k, label)
            owner = label % RANKS
            place = places[owner].index((rank, k))
            _row(axes, _ACROSS, owner, place, label)
            _arrow(axes, (_WIDTH, _middle(rank, k)), (_ACROSS, _middle(owner, place)), label, stays=owner == rank)


def _all_gather(axes: Axes) -> None:
    _frame(axes, "all-gather: every row to every rank, and all ranks' gradients back")
    everything = [label for labels in LABELS for label in labels]
    pitch = _PITCH * len(LABELS[0]) / len(everything)
    for rank, labels in enumerate(LABELS):
        _box(axes, 0, rank, f"rank {rank}")
        _box(axes, _ACROSS, rank, f"rank {rank}")
        for k, label in enumerate(labels):
            _row(axes, 0, rank, k, label)
        for k, label in enumerate(everything):
            _row(axes, _ACROSS, rank, k, label, pitch=pitch)
        for source, others in enumerate(LABELS):
            for k, label in enumerate(others):
                end = _middle(rank, source * len(others) + k, pitch)
                _arrow(axes, (_WIDTH, _middle(source, k)), (_ACROSS, end), label, stays=source == rank, width=0.6)


def _owned() -> list[list[tuple[int, int]]]:
    """(rank, place) of each owner's rows, in the order in which they stand there: class by class."""
    rows = sorted((label, rank, k) for rank, labels in enumerate(LABELS) for k, label in enumerate(labels))
    return [[(rank, k) for label, rank, k in rows if label % RANKS == owner] for owner in range(RANKS)]


def _frame(axes: Axes, title: str) -> None:
    axes.set_xlim(-0.25, _ACROSS + _WIDTH + 0.25)
    axes.set_ylim(-RANKS * _RANK_HEIGHT, 0.1)
    axes.set_title(title, fontsize=11)


def _top(rank: int) -> float:
    return -rank * _RANK_HEIGHT - 0.45


def _middle(rank: int, k: int, pitch: float = _PITCH) -> float:
    return _top(rank) - k * pitch - pitch / 2


def _box(axes: Axes, left: float, rank: int, text: str) -> None:
    height = len(LABELS[0]) * _PITCH
    corner = (left - 0.12, _top(rank) - height)
    axes.add_patch(
        FancyBboxPatch(corner, _WIDTH + 0.24, height, boxstyle="round,pad=0.02", fill=False, edgecolor=FLOOR)
    )
    axes.text(left - 0.12, _top(rank) + 0.1, text, color="#1d2330")


def _row(axes: Axes, left: float, rank: int, k: int, label: int, pitch: float = _PITCH) -> None:
    height = _HEIGHT * pitch / _PITCH
    corner = (left, _middle(rank, k, pitch) - height / 2)
    axes.add_patch(Rectangle(corner, _WIDTH, height, color=CLASS_COLOURS[label]))
    if pitch == _PITCH:
        x, y = left + _WIDTH / 2, _middle(rank, k)
        axes.text(x, y, str(label), color="white", ha="center", va="center_baseline", fontsize=8)


def _arrow(
    axes: Axes, start: Sequence[float], end: Sequence[float], label: int, stays: bool, width: float = 1.1
) -> None:
    """There, dotted where a row stays on its rank."""
    axes.add_patch(
        FancyArrowPatch(
            (start[0] + 0.03, start[1]),
            (end[0] - 0.03, end[1]),
            arrowstyle="-" if stays else "<->",
            mutation_scale=7,
            shrinkA=0,
            shrinkB=0,
            linewidth=width,
            linestyle=":" if stays else "-",
            color=CLASS_COLOURS[label],
            alpha=0.8,
        )
    )


def _undated(path: Path) -> dict[str, None]:
    """No date, so that the same picture is the same file."""
    return {"Date": None} if path.suffix == ".svg" else {}


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
