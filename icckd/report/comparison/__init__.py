"""What `icckd compare` writes: statistics of the runs that are finished, and pages that say what they show.

`runs` reads the folders, `statistics` knows the formulas, `results` puts both together, `findings` says in words what
can be concluded; `page` and `markdown` show it.
"""

import csv
import io
from pathlib import Path

from icckd.files import write_json, write_text
from icckd.report.comparison.markdown import markdown_page
from icckd.report.comparison.page import html_page
from icckd.report.comparison.results import Results, as_json, results_of
from icckd.report.comparison.runs import read_runs
from icckd.settings.comparison import Comparison

__all__ = ["Results", "write_comparison"]


def write_comparison(folder: Path, comparison: Comparison) -> Results:
    """Write compare.json, compare.csv, compare.md and compare.html of the runs in folder/runs/VARIANT/SEED.

    A run is finished where its summary.json has every stage that the comparison trains; it needs no other file. Returns
    what was written. Raises UserError where a file is broken; nothing is then written.
    """
    results = results_of(comparison, read_runs(folder, comparison))
    page, text, rows = html_page(results), markdown_page(results), _csv(results)
    write_json(folder / "compare.json", as_json(results))
    write_text(folder / "compare.csv", rows)
    write_text(folder / "compare.md", text)
    write_text(folder / "compare.html", page)
    return results


def _csv(results: Results) -> str:
    """A row a run: variant, seed, and each metric, empty where it is unknown."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    metrics = results.comparison.metrics
    writer.writerow(["variant", "seed", *metrics])
    for variant in results.comparison.variants:
        for seed in results.comparison.seeds:
            run = results.runs.get((variant, seed))
            writer.writerow([variant, seed, *(run.value(metric) if run else None for metric in metrics)])
    return buffer.getvalue()
