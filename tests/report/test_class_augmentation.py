"""The section on crops by class, in both pages."""

import re
from pathlib import Path

import pytest

from icckd.errors import UserError
from icckd.report import write_report
from icckd.report.class_augmentation import charts, class_augmentation_section, class_augmentation_text
from icckd.report.trials import read_class_augmentation
from tests.report.conftest import CLASSES
from tests.report.parsed import Page

FOUND = {
    "areas": [0.08, 0.5, 1.0],
    "false_positives": [[3, 4, 9], [21, 15, 4], [0, 0, 0], [8, 1, 14]],
    "accuracy": [[0.25, 0.5, 0.75], [1.0, 0.875, 0.625], [0.5, 0.5, None], [0.125, 0.25, 0.375]],
    "chosen": {"1": 1.0, "3": 0.5},
    "holdout": 0.2,
}
HEADING = "Crops by class"


def pages(run):
    write_report(run.path)
    return (run.path / "report.html").read_text(), (run.path / "report.md").read_text()


def with_trials(run, **changes):
    run.summary["class_augmentation"] = {**FOUND, **changes}
    run.write()
    return run


def sections(classes, **changes):
    """The section of both pages by itself."""
    found = read_class_augmentation({"class_augmentation": {**FOUND, **changes}}, Path("summary.json"), classes)
    return class_augmentation_section(found), class_augmentation_text(found)


def test_a_run_without_trials_says_nothing_of_them():
    assert read_class_augmentation({}, Path("summary.json"), []) is None
    assert class_augmentation_section(None) == class_augmentation_text(None) == ""


def test_both_pages_say_which_classes_were_chosen_and_why(run):
    run.summary["data"]["augmentation"] = {"crop_padding": 0, "flip": False, "resized_crop": [0.08, 1.0]}
    # Strong views have one crop for all classes.
    run.summary["data"]["strong_augmentation"] = {"crop_padding": 0, "flip": True, "resized_crop": [0.5, 1.0]}
    page, markdown = pages(with_trials(run))
    for text in (Page(page).text, markdown):
        words = " ".join(text.split())
        assert HEADING in words
        assert "on 80 % of the training images, with random crops of at least 8 %, 50 % and 100 % of" in words
        assert "2 of 4 classes have a milder crop" in words
        assert "fewest false positives: one (at least 100 %: 4 rather than 21), three (at least 50 %: 1 rather" in words
        assert "boxes of 0.08 to 1 of the area, resized, larger ones for 2 classes" in words
        assert "boxes of 0.5 to 1 of the area, resized, mirrored" in words
    rows = [re.split(r" *\| *", line)[1:-1] for line in markdown.splitlines() if line.startswith("| one")]
    assert rows[:2] == [["one", "100 %", "21", "15", "4"], ["one", "100 %", "100.00 %", "87.50 %", "62.50 %"]]
    # Those that were chosen come first, then whoever had most to gain.
    table = page[page.index("<caption>False positives") :]
    assert re.findall(r'<th scope="row">(\w+)', table)[:4] == ["one", "three", "zero", "two"]
    assert '<td class="number changed">4</td>' in table


def test_pictures_show_the_chosen_classes_and_the_others_together(run):
    found = read_class_augmentation(with_trials(run).summary, run.path, run.classes)
    accuracy, counts = charts(found)
    assert [(curve.label, list(curve.values)) for curve in accuracy.curves] == [
        ("one", [1.0, 0.875, 0.625]),
        ("three", [0.125, 0.25, 0.375]),
        ("others", [0.375, 0.5, 0.75]),
    ]
    assert counts.curves[-1].band == ([0, 0, 0], [3, 4, 9])
    assert all(curve.epochs == [0.08, 0.5, 1.0] for chart in (accuracy, counts) for curve in chart.curves)
    figures = [label for label in Page(pages(run)[0]).all("svg") if "by crop" in label["aria-label"]]
    assert len(figures) == 2
    assert "one 21 at smallest crop, as a fraction of the area 0.08, 4 at" in figures[1]["aria-label"]


def test_no_class_with_anything_to_gain():
    page, markdown = sections([], false_positives=[[0, 1, 2]] * 4, chosen={})
    for text in (Page(page).text, markdown):
        assert "No class has fewer of them with a milder crop than with the strongest" in " ".join(text.split())
    assert "all classes" in page


def test_many_classes_are_folded():
    many = {name: FOUND[name] * 15 for name in ("false_positives", "accuracy")}
    chosen = {str(label): 1.0 for label in range(1, 60, 4)} | {str(label): 0.5 for label in range(3, 60, 4)}
    for page in sections([f"class {label}" for label in range(60)], **many, chosen=chosen):
        words = " ".join(Page(page).text.split())
        assert "and 25 more" in words
        assert "(30 of 60 classes, those with most to gain)" in words


@pytest.mark.parametrize(
    "changes",
    [
        {"areas": []},
        {"areas": ["x", 0.5, 1.0]},
        {"holdout": None},
        {"accuracy": [[0.5]]},
        {"false_positives": FOUND["false_positives"][:3]},
        {name: FOUND[name][:3] for name in ("false_positives", "accuracy")},
        {"chosen": []},
    ],
)
def test_what_does_not_fit_together_is_refused(changes):
    with pytest.raises(UserError, match=r"summary\.json: class_augmentation"):
        sections(CLASSES, **changes)
