"""The section on clients, in both pages."""

from html import unescape as html_unescaped
from pathlib import Path

import pytest

from icckd.errors import UserError
from icckd.report import write_report
from icckd.report.federated import federated_section, federated_text, read_federation

FOUND = {
    "images_by_client": [90, 1128, 95],
    "bytes_sent": 700_000,
    "bytes_by_round": [100_000, 400_000, 200_000],
    "warmup_rounds": 1,
    "weak_classes": ["cat", "<dog>"],
    "groups": [["cat", "<dog>", "fox"], ["elk", "ox"]],
}


def read(**changes):
    return read_federation({"student": {"federated": {**FOUND, **changes}}}, Path("summary.json"))


def test_both_pages_tell_of_clients_bytes_and_groups(run):
    run.summary["student"]["federated"] = FOUND
    run.settings["federated"] = {"clients": 3, "rounds": 3, "local_epochs": 5}
    run.summary["student"]["method"] = "pkd"
    run.write()
    write_report(run.path)
    html, markdown = ((run.path / name).read_text() for name in ("report.html", "report.md"))
    for page, dog in ((html, "&lt;dog&gt;"), (markdown, "&lt;dog>")):
        assert " trained by pkd on " in page
        assert "The student's training asks the teacher nothing." in html_unescaped(page)
        assert "Clients, and what they sent" in page
        assert "3 clients with 90 to 1,128 training images each trained in 3 rounds." in page
        assert "took 0.7 MB on their way" in page
        assert "0.1 MB in the first round, 0.4 MB at most, 0.2 MB in the last." in page
        assert "by epoch 15" in page  # Of the learning rate: a client's passes.
        assert f"After 1 of the rounds these classes were weak: cat, {dog}." in page
        assert f"cat with {dog} with fox; elk with ox." in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weak_classes": None, "groups": None}, "nobody was asked which classes are confused"),
        ({"weak_classes": [], "groups": []}, "no class was weak"),
        ({"groups": []}, "None of them and another were confused with each other"),
    ],
)
def test_what_was_not_found_is_said(changes, words):
    assert words in federated_text(read(**changes))
    assert words in federated_section(read(**changes))


def test_without_clients_there_is_no_section():
    assert read_federation({"student": {}}, Path("summary.json")) is None
    assert federated_text(None) == federated_section(None) == ""


@pytest.mark.parametrize(
    "changes",
    [{"images_by_client": []}, {"images_by_client": ["many"]}, {"bytes_by_round": [-1]}, {"warmup_rounds": None},
     {"groups": "cat"}],
)  # fmt: skip
def test_a_broken_summary_is_refused(changes):
    with pytest.raises(UserError, match=r"student\.federated should have"):
        read(**changes)
