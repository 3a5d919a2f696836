"""The section on disparity learning, in both pages."""

import pytest
import torch
from safetensors.torch import save_file

from icckd.errors import UserError
from icckd.report import write_report
from icckd.report.codes import Codes
from icckd.report.disparity import clouds, disparity_section, disparity_text, principal_components
from icckd.report.results import read_results
from tests.report.conftest import CLASSES
from tests.report.parsed import Page

HEADING = "What people share, and what differs between them"
TITLES = [f"{code} code, by {group}" for code in ("Class", "Disparity") for group in ("class", "person")]


def codes(windows=40, dim=5, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "class_codes": torch.randn(windows, dim, generator=random),
        "disparity_codes": torch.randn(windows, dim, generator=random),
        "labels": torch.randint(len(CLASSES), (windows,), generator=random),
        "people": torch.randint(3, (windows,), generator=random),
    }


def with_codes(run, tensors=None, **numbers):
    run.settings["teacher"]["loss"]["method"] = "spectrum"
    run.summary["teacher"].update(numbers)
    run.write()
    save_file(codes() if tensors is None else tensors, run.path / "teacher" / "findings.safetensors")
    return run


def sections(run):
    results = read_results(run.path)
    return disparity_section(results), disparity_text(results)


def test_both_pages_tell_of_the_swap_and_one_shows_both_codes(run):
    run.summary["data"]["people"] = {"train": ["Bob", "Eve"], "test": ["Ann"]}
    write_report(with_codes(run, reconstruction_accuracy=0.8765, swap_accuracy=0.7654).path)
    page, markdown = ((run.path / name).read_text() for name in ("report.html", "report.md"))
    parsed = Page(page)
    for text in (parsed.text, markdown):
        words = " ".join(text.split())
        assert HEADING in words
        assert "names 87.65 % rightly after they were decoded from their own two codes, and 76.54 % where" in words
    assert all(title in parsed.text for title in TITLES)
    drawn = [svg["aria-label"] for svg in parsed.all("svg") if " code, by " in svg.get("aria-label", "")]
    assert [label.split(":")[0] for label in drawn] == TITLES
    people = codes()["people"]
    for person, name in enumerate(("Ann", "person 2", "person 3")):
        assert f"{(people == person).sum()} of {name} around (" in drawn[1]
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_other_teachers_say_nothing_of_it(run):
    with_codes(run)
    run.settings["teacher"]["loss"]["method"] = "wsc"
    run.write()
    assert sections(run) == ("", "")


def test_a_run_that_has_not_come_so_far_says_nothing_of_it(run):
    (with_codes(run).path / "teacher" / "findings.safetensors").unlink()
    assert sections(run) == ("", "")


def test_without_another_person_of_the_class_there_are_pictures_alone(run):
    page, markdown = sections(with_codes(run, reconstruction_accuracy=None, swap_accuracy=None))
    assert TITLES[0] in page
    assert "after they were decoded" not in page
    assert markdown == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"people": None}, "lacks people"),
        ({"labels": torch.full((40,), len(CLASSES))}, r"labels should lie in \[0, 4\)"),
        ({"labels": torch.zeros(39, dtype=torch.int64)}, "39 rows, as many as labels"),
        ({"people": torch.zeros(40)}, "int64 of 40 rows"),
        ({"people": torch.full((40,), -1)}, "people should be counted from 0"),
        ({"class_codes": torch.full((40, 5), torch.nan)}, "finite float32"),
        ({"disparity_codes": torch.zeros(40, 5, dtype=torch.float64)}, "finite float32"),
        ({"disparity_codes": torch.zeros(40)}, "finite float32"),
        ({"disparity_codes": torch.zeros(40, 0)}, "a number or more each"),
        (codes(windows=0), "a window or more"),
    ],
)
def test_a_broken_file_is_named(run, change, words):
    tensors = {name: tensor for name, tensor in {**codes(), **change}.items() if tensor is not None}
    with_codes(run, tensors)
    with pytest.raises(UserError, match=rf"findings\.safetensors: .*{words}"):
        read_results(run.path)


def test_a_file_of_another_kind_is_named(run):
    (with_codes(run).path / "teacher" / "findings.safetensors").write_text("no tensors")
    with pytest.raises(UserError, match=r"findings\.safetensors is not a readable safetensors file"):
        read_results(run.path)


def test_components_are_those_of_the_covariance():
    rows = torch.randn(30, 6, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1, 2.0, 1.0, 0.5])
    values, vectors = torch.linalg.eigh(torch.cov(rows.T))
    places, shares = principal_components(rows)
    assert shares == pytest.approx([(values[-1] / values.sum()).item(), (values[-2] / values.sum()).item()])
    for place, vector in zip(places.T, (vectors[:, -1], vectors[:, -2]), strict=True):
        vector = vector * vector[vector.abs().argmax()].sign()
        torch.testing.assert_close(place, (rows - rows.mean(0)) @ vector)


@pytest.mark.parametrize("shape", [(1, 3), (4, 1), (5, 3)])
def test_what_does_not_vary_lies_in_the_middle(shape):
    places, shares = principal_components(torch.ones(shape))
    assert torch.equal(places, torch.zeros(shape[0], 2, dtype=torch.float64))
    assert shares == [0.0, 0.0]


def test_people_of_any_number_are_named():
    tensors = codes()
    tensors["people"] += 2**62
    found = clouds(Codes(**tensors), CLASSES, ["Ann"])
    assert {kind.label for kind in found[1].kinds} <= {f"person {2**62 + n}"[:15] + "…" for n in (1, 2, 3)}


def test_kinds_differ_in_colour_or_marker():
    windows = 66
    found = clouds(Codes(*(torch.randn(windows, 4) for _ in range(2)), *(torch.arange(windows) % 22,) * 2), ["x"] * 22)
    for cloud in found:
        assert len({(kind.colour, kind.marker) for kind in cloud.kinds}) == len(cloud.kinds) == 21
        assert len({kind.marker for kind in cloud.kinds[:7]}) == 7
        assert {len(kind.across) for kind in cloud.kinds} == {3}
