"""A run's pages: report.html for a browser, report.md for a terminal."""

from pathlib import Path

from icckd.files import write_text
from icckd.report.markdown import markdown_page
from icckd.report.page import html_page
from icckd.report.results import read_results

__all__ = ["write_report"]


def write_report(run: Path) -> None:
    """Write report.html and report.md of the run in the folder `run` from the other files there.

    A run without a student, a teacher, or examples gets a report that says so. Raises UserError where the folder is no
    run's or a file in it is broken; the earlier report then stays.
    """
    results = read_results(run)
    page, text = html_page(results), markdown_page(results)
    write_text(run / "report.html", page)
    write_text(run / "report.md", text)
