"""Draws what students of intra-class teachers gain over those of plain ones, comparison by comparison.

`python -m bench.claim_picture FIGURE.png FOLDER:LINE:NAME …`: of each comparison in results/ that is against the
students' method, the differences of the line LINE to the baseline's by method, with their 95 % intervals; filled where
they stand after Holm's correction over all differences of that comparison. NAME is what the figure calls it. Read are
compare.yaml and the runs' summaries alone.
"""

import argparse
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.claim import RESULTS, read_results
from icckd.errors import UserError
from icckd.report.comparison.results import Difference, Results

PANELS = {
    "student.test_accuracy": "accuracy,\npoints",
    "student.fine_probe": "what classes hide, probe\nof features, points",
    "student.fine_probe_soft_labels": "what classes hide, probe\nof soft labels, points",
    "student.neighbour_agreement": "the teacher's neighbours\nkept (1: always), × 100",
}
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"]


@dataclass(frozen=True)
class Row:
    """The students of a comparison's line that learn by `method`."""

    name: str
    results: Results
    variant: str
    method: str
    colour: str

    @property
    def label(self) -> str:
        return f"{self.name}: {self.method} ({len(self.results.runs_of(self.variant))})"

    def difference(self, metric: str) -> Difference | None:
        """To the students of the plain teacher; None where the comparison has no such number."""
        return self.results.differences[self.variant].get(metric)


def picture(given: list[tuple[str, str, str]]) -> Figure:
    """Of folders, lines and names: a panel for each number, in it a row for each comparison and students' method."""
    rows = [row for n, each in enumerate(given) for row in _rows(*each, COLOURS[n % len(COLOURS)])]
    figure = Figure(figsize=(13, 1.3 + 0.25 * len(rows)), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        for place, row in enumerate(rows):
            _bar(axes, place, row.difference(metric), row.colour)
        axes.axvline(0, color="#999999", linewidth=0.8, zorder=0)
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=10)
        axes.set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel(
        "Students of intra-class teachers less those of plain ones, by students' method (seeds); 95 % intervals.\n"
        "Filled: stands after Holm's correction; hollow: does not. x: not measured.",
        fontsize=9,
    )
    return figure


def _rows(folder: str, line: str, name: str, colour: str) -> list[Row]:
    results = read_results(RESULTS / folder)
    lines = {each.name: each.variants for each in results.lines}
    if line not in lines:
        raise UserError(f"{folder} has no line {line}; its lines are {', '.join(lines)}")
    return [Row(name, results, variant, str(place), colour) for place, variant in lines[line].items()]


def _bar(axes: Axes, place: int, of: Difference | None, colour: str) -> None:
    """A difference and its interval; a small x where there is none."""
    estimate = None if of is None else of.estimate
    if of is None or estimate is None or estimate.mean is None or estimate.low is None or estimate.high is None:
        axes.plot(0, place, "x", color="#999999", markersize=4)
        return
    axes.plot([100 * estimate.low, 100 * estimate.high], [place, place], color=colour, linewidth=1.5)
    axes.plot(100 * estimate.mean, place, "o", color=colour, markerfacecolor=colour if of.stands else "white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", metavar="FIGURE.png")
    parser.add_argument("rows", metavar="FOLDER:LINE:NAME", nargs="+", type=_row)
    options = parser.parse_args()
    try:
        picture(options.rows).savefig(options.figure, dpi=120)
    except (OSError, UserError) as error:
        parser.error(str(error))


def _row(text: str) -> tuple[str, str, str]:
    folder, _, rest = text.partition(":")
    line, colon, name = rest.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} should be FOLDER:LINE:NAME")
    return folder, line, name


if __name__ == "__main__":
    main()
