"""Draws the sweeps of `bench.intra_class`: time against number of classes, number of rows, and skew.

`python -m bench.plot ROWS.json FIGURE.png` draws a recorded run again.
"""

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icckd.bench.measure import Row

COLOURS = {
    "icckd cpu": "#0072b2",
    "icckd reference": "#56b4e9",
    "padded bmm, gradient by hand": "#009e73",
    "padded bmm": "#d55e00",
    "loop over classes": "#cc79a7",
}
FLOOR = "#555555"


def draw(rows: list[Row], path: Path) -> None:
    """One figure with a panel for each sweep."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    classes, size, skew = figure.subplots(1, 3)
    _lines(classes, [r for r in rows if r.get("sweep") == "classes"], "c", "classes (N = 16,384, D = 128)")
    _lines(size, [r for r in rows if r.get("sweep") == "size"], "n", "rows (128 a class, D = 128)")
    _bars(skew, [r for r in rows if r.get("sweep") == "skew"])
    figure.legend(*size.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
    first = rows[0]
    figure.suptitle(
        f"Intra-class loss and both gradients, float32: {first['processor']}, {first['threads']} threads, "
        f"torch {first['torch']}, {first['date'][:10]}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _lines(axes: Axes, rows: list[Row], x: str, label: str) -> None:
    for name, colour in COLOURS.items():
        points = sorted((r[x], r["median_ms"]) for r in rows if r["contender"] == name)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name)
    floor = _floor(rows, x)
    axes.plot(list(floor), list(floor.values()), "--", color=FLOOR, label="floor")
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="milliseconds (median)")
    axes.grid(alpha=0.3)


def _bars(axes: Axes, rows: list[Row]) -> None:
    kinds = list(dict.fromkeys(r["sizes"] for r in rows))
    for k, (name, colour) in enumerate(COLOURS.items()):
        times = {r["sizes"]: r["median_ms"] for r in rows if r["contender"] == name}
        places = [i + 0.16 * (k - 2) for i, kind in enumerate(kinds) if kind in times]
        axes.bar(places, [times[kind] for kind in kinds if kind in times], width=0.15, color=colour, label=name)
        for i, kind in enumerate(kinds):
            if kind not in times:
                x, bottom = i + 0.16 * (k - 2), axes.get_xaxis_transform()
                axes.text(x, 0.02, "too large", transform=bottom, rotation=90, ha="center", fontsize=8, color=colour)
    for i, kind in enumerate(kinds):
        height = _own_floor([r for r in rows if r["sizes"] == kind])
        axes.hlines(height, i - 0.42, i + 0.42, linestyles="--", colors=FLOOR)
    axes.set(yscale="log", xlabel="class sizes (N = 16,384, D = 128, C = 100)", ylabel="milliseconds (median)")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.grid(alpha=0.3, axis="y")


def _floor(rows: list[Row], x: str) -> dict[int, float]:
    floor: dict[int, float] = {}
    for row in sorted(rows, key=lambda r: r[x]):
        if row["contender"].startswith("floor"):
            floor[row[x]] = floor.get(row[x], 0.0) + row["median_ms"]
    return floor


def _own_floor(rows: list[Row]) -> float:
    """Milliseconds of the floor over the classes as they are: rows recorded before there was one have the other."""
    times = {r["contender"]: r["median_ms"] for r in rows if "floor" in r["contender"]}
    if (own := times.pop("own floor: two bare matrix products", None)) is not None:
        times["floor: two bare matrix products"] = own
    return sum(times.values())


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
