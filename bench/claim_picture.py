"""Draws what students of intra-class teachers gain over those of plain ones, comparison by comparison.

`python -m bench.claim_picture FIGURE.png FOLDER:LINE …`: of each comparison in results/ that is against the students'
method, the differences of the line LINE to the baseline's by method, with their 95 % intervals; filled where they stand
after Holm's correction over all differences of that comparison. Read are compare.yaml and the runs' summaries alone.
"""

import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.claim import RESULTS, read_results
from icckd.report.comparison.results import Results

PANELS = {
    "student.test_accuracy": "accuracy, points",
    "student.fine_probe": "what classes hide,\nprobe of features, points",
    "student.fine_probe_soft_labels": "what classes hide,\nprobe of soft labels, points",
    "student.neighbour_agreement": "the teacher's neighbours kept,\nof 100",
}
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"]


def picture(given: list[tuple[str, str]]) -> Figure:
    """Of names of comparisons and lines: a panel for each number, in it a row for each comparison and method."""
    found = [(name, line, read_results(RESULTS / name)) for name, line in given]
    rows = [(n, method) for n, (_, _, results) in enumerate(found) for method in results.comparison.order()]
    figure = Figure(figsize=(13, 1.4 + 0.27 * len(rows)), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        for place, (n, method) in enumerate(rows):
            _, line, results = found[n]
            _bar(axes, place, results, _variant(results, line, str(method)), metric, COLOURS[n % len(COLOURS)])
        axes.axvline(0, color="#999999", linewidth=0.8, zorder=0)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(rows)), [f"{Path(found[n][0]).name}  {method}" for n, method in rows], fontsize=9)
        axes.set_ylim(len(rows) - 0.4, -0.6)
    figure.suptitle(
        "Students of intra-class teachers less those of plain ones, by the method that they learn by (paired by seed, "
        "95 % intervals; filled: after Holm's correction)",
        fontsize=10,
    )
    return figure


def _variant(results: Results, name: str, method: str) -> str | None:
    """The variant of the line `name` whose students learn by `method`."""
    line = next(line for line in results.lines if line.name == name)
    return next((variant for place, variant in line.variants.items() if str(place) == method), None)


def _bar(axes: Axes, place: int, results: Results, variant: str | None, metric: str, colour: str) -> None:
    """A difference and its interval; nothing where the comparison has none."""
    if variant is None or metric not in results.differences[variant]:
        return
    of = results.differences[variant][metric]
    mean, low, high = of.estimate.mean, of.estimate.low, of.estimate.high
    if mean is None or low is None or high is None:
        return
    axes.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=1.5)
    axes.plot(100 * mean, place, "o", color=colour, markerfacecolor=colour if of.stands else "white", markersize=6)


def main() -> None:
    path, *given = sys.argv[1:]
    figure = picture([(name, line) for name, _, line in (each.partition(":") for each in given)])
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
