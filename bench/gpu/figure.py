"""The figure of a visit: how near the project's backends come to the floor, and by how much they beat the best peer."""

from pathlib import Path

from bench.gpu.targets import best
from icckd.bench.measure import Row

_COLOURS = {"icckd triton": "#0072b2", "icckd cuda": "#d55e00", "icckd reference": "#56b4e9"}


def draw(rows: list[Row], path: Path) -> None:
    """Bars for each case and backend. Raises ImportError where there is no matplotlib."""
    from matplotlib.figure import Figure

    speed = [row for row in rows if row.get("stage") == "speed"]
    cases = [case for case in dict.fromkeys(row["case"] for row in speed)]
    figure = Figure(figsize=(13, 1.5 + 0.42 * len(cases)), layout="constrained")
    floor, peers = figure.subplots(1, 2, sharey=True)
    for k, (contender, colour) in enumerate(_COLOURS.items()):
        found = [best(speed, case, contender) for case in cases]
        places = [i + 0.27 * (k - 1) for i in range(len(cases))]
        for axes, key in ((floor, "fraction_of_floor"), (peers, "times_faster_than_best_peer")):
            values = [0.0 if row is None or row[key] is None else row[key] for row in found]
            axes.barh(places, values, height=0.25, color=colour, label=contender)
    floor.set(xlabel="floor / time (1: nothing could be faster)", xlim=(0, 1.05))
    floor.set_yticks(range(len(cases)), cases, fontsize=7)
    floor.invert_yaxis()
    peers.set(xlabel="times faster than the best peer in the same way of launching", xscale="symlog")
    peers.axvline(1, color="#555555", linewidth=1)
    peers.legend(fontsize=8)
    first = speed[0]
    figure.suptitle(f"{first['processor']}, torch {first['torch']}, {first['date'][:10]}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
