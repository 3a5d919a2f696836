"""What classes hide, as the pages show it: places between nothing and everything, and folders that are not whole."""

import math
import re

import pytest

from icckd.report import write_report
from icckd.report.hidden import fine_within, rows
from icckd.report.results import read_results
from tests.report.parsed import Page

TEACHER = {"fine_probe": 0.75, "fine_probe_soft_labels": 0.4, "fine_information_soft_labels": 0.25}
STUDENT = {"fine_probe": 0.5, "fine_probe_soft_labels": 0.2, "neighbour_agreement": 0.125}


@pytest.fixture
def hiding(run):
    run.summary["data"]["fine_classes"] = 12
    run.summary["teacher"] |= TEACHER
    run.summary["student"] |= STUDENT
    run.write()
    return run


def section(run):
    """The section's HTML, and its Markdown."""
    write_report(run.path)
    page, text = ((run.path / f"report.{kind}").read_text() for kind in ("html", "md"))
    parts = page.split("<h2>What classes hide</h2>"), text.split("## What classes hide")
    return tuple(
        part[1].split(end)[0] if part[1:] else "" for part, end in zip(parts, ("</section>", "##"), strict=True)
    )


def test_dots_stand_between_chance_and_everything(hiding):
    page, _ = section(hiding)
    found = re.findall(r'class="dot (\w+)" style="left:([\d.]+)%"', page)
    expected = [
        *(("teacher", (0.75 - 1 / 3) / (2 / 3)), ("student", (0.5 - 1 / 3) / (2 / 3))),
        # The student's is less than chance.
        *(("teacher", (0.4 - 1 / 3) / (2 / 3)), ("student", 0)),
        *(("teacher", 0.25 / math.log(3)), ("student", 0.125)),
    ]
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [float(place) / 100 for _, place in found] == pytest.approx([place for _, place in expected], abs=1e-4)


def test_numbers_stand_beside_chance_and_what_there_is(hiding):
    page, text = section(hiding)
    for shown in (
        "4 classes, which hide 12 finer ones",
        "33.33 %",
        f"{math.log(3):.4f}",
        "75.00 %",
        "0.2500",
        "0.1250",
    ):
        assert shown in Page(page).text
        assert shown in text
    line = next(line for line in text.splitlines() if line.startswith("| Neighbours"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == ["–", "0.1250", "0.0000", "1.0000"]


def test_neighbours_stay_in_the_main_table_where_nothing_is_hidden(run):
    run.summary["student"]["neighbour_agreement"] = 0.125
    run.write()
    assert section(run) == ("", "")
    assert "0.1250" in (run.path / "report.md").read_text()


@pytest.mark.parametrize("fine", [None, "12", True, -3, 0, 4, 10**400, math.nan, [12]])
def test_without_a_number_of_fine_classes_nothing_that_needs_it_is_drawn(hiding, fine):
    hiding.summary["data"]["fine_classes"] = fine
    hiding.write()
    page, text = section(hiding)
    assert fine_within(read_results(hiding.path)) is None
    assert re.findall(r'class="dot (\w+)" style="left:([\d.]+)%"', page) == [("student", "12.50")]
    assert "classes, which hide finer ones" in text
    assert "75.00 %" in text


def test_values_that_are_no_numbers_are_dashes(hiding):
    hiding.summary["teacher"] |= {"fine_probe": "0.75", "fine_information_soft_labels": math.inf}
    hiding.summary["student"] |= {"fine_probe": None, "neighbour_agreement": 9e99}
    hiding.write()
    page, text = section(hiding)
    assert 'style="left:100.00%"' in page
    assert [row.key for row in rows(read_results(hiding.path))] == [*TEACHER, "neighbour_agreement"]
    lines = [line for line in text.splitlines() if line.startswith(("| Fine classes in features", "| What soft"))]
    assert all(line.count("–") == 2 for line in lines)
    assert len(lines) == 2
