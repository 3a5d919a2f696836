"""The rows as a figure: a panel for each function and dtype, bars by contender, or curves over a size that varies."""

from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icckd.bench.functions import AXES
from icckd.bench.measure import Row
from icckd.bench.recorded import conditions_line
from icckd.files import write_whole

# The project's own colours; others' are drawn from a map.
_OURS = {"icckd cpu": "#0072b2", "icckd triton": "#0072b2", "icckd cuda": "#d55e00", "icckd reference": "#56b4e9"}
_OTHERS = colormaps["Set2"].colors  # type: ignore[attr-defined]
_FLOOR = "#555555"


def draw(rows: list[Row], path: Path) -> None:
    """Loss and gradients of everybody who was timed, and the floor; recorded machines are dashed, or hatched."""
    timed = [row for row in rows if row.get("mode") == "step"]
    panels = _panels(timed)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 4.2 * lines + 0.8), layout="constrained")
    for axes, (title, panel) in zip(figure.subplots(lines, columns, squeeze=False).flat, panels.items(), strict=False):
        varying = _varying(panel)
        axes.set_title(title, fontsize=10)
        (_curves(axes, panel, varying) if varying else _bars(axes, panel))
        axes.grid(alpha=0.3)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    own = next(row for row in timed if not row["recorded"])
    figure.suptitle(f"Loss and gradients: {conditions_line(own)}", fontsize=11)
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=120))


def _panels(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by function, dtype and all sizes but the one that takes most values."""
    panels: dict[str, list[Row]] = {}
    by_function: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_function.setdefault((row["function"], row["dtype"]), []).append(row)
    for (function, dtype), own in by_function.items():
        varying = _varying(own)
        for row in own:
            fixed = [f"{axis.upper()} = {row[axis]:,}" for axis in AXES.values() if axis in row and axis != varying]
            panels.setdefault(", ".join([function, dtype, *fixed]), []).append(row)
    return panels


def _varying(rows: list[Row]) -> str | None:
    """The size that takes most values, None where each takes one."""
    counts = {axis: len({row[axis] for row in rows if axis in row}) for axis in AXES.values()}
    most = max(counts, key=lambda axis: counts[axis])
    return most if counts[most] > 1 else None


def _names(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by contender, recorded ones under the machine's name."""
    named: dict[str, list[Row]] = {}
    for row in rows:
        machine = f"{row['recorded']}: " if row["recorded"] else ""
        named.setdefault(f"{machine}{row['contender']}", []).append(row)
    return named


def _colours(rows: list[Row]) -> dict[str, str]:
    others = [name for name in dict.fromkeys(row["contender"] for row in rows) if name not in _OURS]
    return _OURS | {name: _OTHERS[k % len(_OTHERS)] for k, name in enumerate(others)}


def _curves(axes: Axes, rows: list[Row], axis: str) -> None:
    colours = _colours(rows)
    for name, own in _names(rows).items():
        points = sorted((row[axis], row["median_ms"]) for row in own)
        style = "--" if own[0]["recorded"] else "-"
        x, y = zip(*points, strict=True)
        axes.plot(x, y, style, marker="o", markersize=4, color=colours[own[0]["contender"]], label=name)
    floors = sorted({(row[axis], row["floor_ms"]) for row in rows if row["floor_ms"] and not row["recorded"]})
    if floors:
        x, y = zip(*floors, strict=True)
        axes.plot(x, y, ":", color=_FLOOR, label="floor")
    axes.set(xscale="log", yscale="log", xlabel=axis.upper(), ylabel="milliseconds (median)")
    axes.legend(fontsize=7)


def _bars(axes: Axes, rows: list[Row]) -> None:
    colours = _colours(rows)
    named = sorted(_names(rows).items(), key=lambda item: item[1][0]["median_ms"])
    for place, (_, (row, *_)) in enumerate(named):
        low, high = row["median_ms"] - row["q20_ms"], row["q80_ms"] - row["median_ms"]
        hatch = "//" if row["recorded"] else None
        axes.barh(place, row["median_ms"], xerr=[[low], [high]], color=colours[row["contender"]], hatch=hatch)
    floors = {row["floor_ms"] for row in rows if row["floor_ms"] and not row["recorded"]}
    for floor in floors:
        axes.axvline(floor, linestyle=":", color=_FLOOR, label="floor")
    axes.set_yticks(range(len(named)), [name for name, _ in named], fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="milliseconds (median, 20–80 %)")
    if floors:
        axes.legend(fontsize=7)
