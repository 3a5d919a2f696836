"""Fills the tables of a Markdown file from the comparisons in results/, so that no number is typed by hand.

`python -m bench.claim FILE.md …` replaces what stands between `<!-- comparison: FOLDER METRIC … -->` and
`<!-- end -->`. FOLDER is one of results/; of it no more is read than compare.yaml and the runs' summaries. Where the
comparison is against texts, as students' methods are, a table has a row for each of them and a column for each line,
metric by metric, but one row where a metric is the same at all, as those of shared teachers are; else a row for each
variant and a column for each metric.
"""

import re
import sys
from pathlib import Path

from icckd.comparison.folder import ComparisonFolder
from icckd.errors import UserError
from icckd.files import write_text
from icckd.report.comparison.findings import overview
from icckd.report.comparison.metrics import Metric
from icckd.report.comparison.results import Results, results_of
from icckd.report.comparison.runs import read_runs
from icckd.report.tables import table

RESULTS = Path(__file__).parent.parent / "results"
_BEGIN, _END = "<!-- comparison: ", "<!-- end -->"
_TABLE = re.compile(rf"({_BEGIN}(\S+)((?: \S+)+) -->)\n(?:(?!{_BEGIN}).)*?({_END})", re.DOTALL)


def fill(text: str, folder: Path = RESULTS) -> str:
    """`text` with every table made anew from what there is below `folder`.

    Raises UserError where a table has no end, or is no comparison's.
    """

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{comparison_table(folder / match[2], match[3].split())}\n{match[4]}"

    ended = {match.start() for match in _TABLE.finditer(text)}
    for match in re.finditer(_BEGIN, text):
        if match.start() not in ended:
            line = text.count("\n", 0, match.start()) + 1
            raise UserError(f"line {line} begins a table, but names no metric, or {_END} does not end it")
    return _TABLE.sub(made, text)


def read_results(path: Path) -> Results:
    """The comparison in `path`, by its definition and its runs' summaries."""
    comparison = ComparisonFolder(path).read()
    return results_of(comparison, read_runs(path, comparison))


def comparison_table(path: Path, names: list[str]) -> str:
    """The table of the metrics `names` of the comparison in `path`, and how its numbers came about."""
    results = read_results(path)
    known = {metric.name: metric for metric in results.metrics}
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(f"{path} does not compare {missing[0]}; its metrics are {', '.join(known)}")
    metrics = [known[name] for name in names]
    parts = _by_places(results, metrics) if results.comparison.by_text else [_by_variant(results, metrics)]
    return "\n\n".join([*parts, _conditions(results)])


def _by_variant(results: Results, metrics: list[Metric]) -> str:
    rows = [[variant, *(_cell(results, variant, metric) for metric in metrics)] for variant in results.estimates]
    return table([results.comparison.baseline + " and others", *(metric.label for metric in metrics)], rows)


def _by_places(results: Results, metrics: list[Metric]) -> list[str]:
    """A table a metric, and one of those that are the same at every place, as of teachers that are shared."""
    by_metric = {metric.label: _by_place(results, metric) for metric in metrics}
    shared = {label: rows[0][1:] for label, rows in by_metric.items() if all(row[1:] == rows[0][1:] for row in rows)}
    lines = [line.name for line in results.lines]
    tables = [table([label, *lines], rows) for label, rows in by_metric.items() if label not in shared]
    if shared:
        tables.append(table(["", *lines], [[label, *cells] for label, cells in shared.items()]))
    return tables


def _by_place(results: Results, metric: Metric) -> list[list[str]]:
    """A row for each place: its name, and a cell for each line."""
    return [
        [
            str(place),
            *(_cell(results, line.variants[place], metric) if place in line.variants else "" for line in results.lines),
        ]
        for place in results.comparison.order()
    ]


def _cell(results: Results, variant: str, metric: Metric) -> str:
    """The mean and the seeds' standard deviation; below it the difference to what the variant is compared with."""
    found = results.estimates[variant][metric.name]
    if variant not in results.differences:
        return f"{metric.value(found.mean)} ± {metric.spread(found.sd)}"
    of = results.differences[variant][metric.name]
    difference = metric.difference(of.estimate.mean)
    difference = f"**{difference}**" if of.stands else difference
    return f"{metric.value(found.mean)}; {difference} [{metric.between(of.estimate.low, of.estimate.high)}]"


def _conditions(results: Results) -> str:
    where = {name: ", ".join(values) for name, values in results.environments.items()}
    days = sorted({run.environment["date"][:10] for run in results.runs.values() if "date" in run.environment})
    when = " to ".join(dict.fromkeys([*days[:1], *days[-1:]])) or "on days that are unknown"
    return (
        f"{overview(results)[0]} After a semicolon: less {results.baseline_in_words}, paired by seed, with its 95 % "
        f"interval; bold where it stands after Holm's correction over {results.tests} differences. "
        f"{where.get('device', '').replace('cpu: ', '').replace('cuda: ', '')}, torch {where.get('torch', '')}, {when}."
    )


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        try:
            write_text(path, fill(path.read_text(encoding="utf-8")))
        except (OSError, UserError) as error:
            sys.exit(f"{path}: {error}")


if __name__ == "__main__":
    main()
