"""The tables that documents make of the comparisons in results/, beside numbers from the summaries."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench import claim, claim_picture
from bench.claim import RESULTS, comparison_table, fill
from bench.claim_picture import PANELS, picture
from icckd.errors import UserError

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if "<!-- comparison:" in path.read_text()
)
COMPARISONS = sorted(path.parent for path in RESULTS.rglob("compare.yaml"))


def values(folder, variant, stage, number):
    summaries = sorted((folder / "runs" / variant).glob("*/summary.json"), key=lambda path: int(path.parent.name))
    return np.array([json.loads(path.read_text())[stage][number] for path in summaries])


def test_a_cell_is_what_the_summaries_come_to():
    pilot = RESULTS / "claim" / "digits-pilot"
    of, base = (values(pilot, name, "student", "fine_probe") for name in ("weight-0.1-kd+rkd", "plain-kd+rkd"))
    low, high = stats.ttest_rel(of, base).confidence_interval()
    text = fill("<!-- comparison: claim/digits-pilot student.fine_probe -->\nWhat was.\n<!-- end -->\n")
    cells = next(line for line in text.splitlines() if line.startswith("| kd+rkd")).split("|")
    assert cells[2].strip() == f"{100 * base.mean():.2f} % ± {100 * base.std(ddof=1):.2f}"
    found = re.fullmatch(r"(\S+) %; \*?\*?\+(\S+?)\*?\*? \[\+(\S+) to \+(\S+)\]", cells[4].strip())
    expected = [of.mean(), (of - base).mean(), low, high]
    assert [float(number) for number in found.groups()] == pytest.approx([100 * x for x in expected], abs=0.005)
    assert "What was." not in text
    assert fill(text) == text


def test_a_picture_s_bars_are_what_the_summaries_come_to():
    pilot = RESULTS / "claim" / "digits-pilot"
    panels = dict(zip(PANELS, picture([("claim/digits-pilot", "weight-0.1", "pilot")]).axes, strict=True))
    methods = [label.get_text().split()[1] for label in panels["student.test_accuracy"].get_yticklabels()]
    assert methods == ["kd", "kd+rkd"]
    bars = [line for line in panels["student.fine_probe"].lines if len(line.get_xdata()) == 2][: len(methods)]
    for method, bar in zip(methods, bars, strict=True):
        of, base = (values(pilot, f"{line}-{method}", "student", "fine_probe") for line in ("weight-0.1", "plain"))
        assert bar.get_xdata() == pytest.approx(100 * np.array(stats.ttest_rel(of, base).confidence_interval()))
    marks = panels["student.fine_probe_soft_labels"].lines
    assert all(len(mark.get_xdata()) == 1 or not any(mark.get_xdata()) for mark in marks)  # Not compared there.


def test_what_is_not_there_is_told(tmp_path):
    (tmp_path / "compare.yaml").write_text(
        "{variants: {a: {}, b: {teacher.nesterov: true}}, baseline: a, seeds: [0], metrics: [student.test_accuracy]}"
    )
    assert "days that are unknown" in comparison_table(tmp_path, ["student.test_accuracy"])  # No run is finished.
    with pytest.raises(UserError, match=r"does not compare student\.seconds; its metrics are student\.test_accuracy"):
        comparison_table(tmp_path, ["student.seconds"])


def test_a_table_without_an_end_changes_nothing(tmp_path, monkeypatch):
    begin = "<!-- comparison: claim/digits-pilot student.fine_probe -->"
    page = tmp_path / "page.md"
    page.write_text(f"A\n{begin}\nold\n\nProse.\n\n{begin}\nold\n<!-- end -->\n")
    monkeypatch.setattr("sys.argv", ["claim", str(page)])
    with pytest.raises(SystemExit, match=r"page\.md: line 2 begins a table, but .* does not end it"):
        claim.main()
    assert "Prose." in page.read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "the following arguments are required: FIGURE.png, FOLDER:LINE:NAME"),
        (["a.png", "claim/digits-pilot"], "'claim/digits-pilot' should be FOLDER:LINE:NAME"),
        (["a.png", "claim/digits-pilot:best:digits"], "claim/digits-pilot has no line best; its lines are plain, "),
        (["/nowhere/a.png", "claim/digits-pilot:weight-0.1:digits: even"], "No such file or directory"),
    ],
)
def test_what_the_picture_cannot_be_of(given, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["claim_picture", *given])
    with pytest.raises(SystemExit) as stopped:
        claim_picture.main()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_s_tables_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert fill(text) == text


@pytest.mark.parametrize("folder", COMPARISONS, ids=lambda path: path.name)
def test_a_page_tells_of_all_runs_that_are_kept(folder):
    kept = {f"{path.parent.parent.name}/{path.parent.name}" for path in folder.glob("runs/*/*/summary.json")}
    found = json.loads((folder / "compare.json").read_text())
    told = {f"{variant}/{seed}" for variant in found["variants"] for seed in found["seeds"]} - set(found["unfinished"])
    assert kept == told
