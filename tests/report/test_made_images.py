"""The section on images that were made for a student, and the line that both pages have of them."""

import pytest
import torch
from safetensors.torch import save_file

from icckd.errors import UserError
from icckd.report.made_images import made_images_section
from icckd.report.results import read_results
from icckd.report.wording import notes
from tests.report.conftest import CLASSES
from tests.report.parsed import Page

HEADING = "What the student learned from"
TENSORS = {
    "images": torch.randint(256, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8),
    "image_labels": torch.tensor([0, 0, 1, 3, 3]),
    "image_confidences": torch.tensor([0.5, 0.25, 1.0, 0.75, 0.004]),
}


def with_images(run, **changes):
    run.summary["student"] |= {"method": "rgal", "images_made": 1280, "images_kept_by_class": [2, 1, 0, 2]}
    run.settings["student"]["loss"]["method"] = "rgal"
    run.write()
    save_file({**TENSORS, **changes}, run.path / "student" / "findings.safetensors")
    return run


def said(run):
    """The section, and the notes that both pages have, as one text each."""
    results = read_results(run.path)
    return made_images_section(results.made_images, results.classes), "\n".join(notes(results))


def test_a_student_that_saw_images_has_no_such_section(run):
    save_file({"anything": torch.zeros(3)}, run.path / "student" / "findings.safetensors")
    section, text = said(run)
    assert section == ""
    assert "were made" not in text


def test_the_page_has_a_row_for_each_class_and_a_picture_for_each_image(run):
    section, text = said(with_images(run))
    assert "1,280 images were made for the student, which saw none of the data set" in text
    assert "50.08 % on average" in text
    page = Page(section)
    assert HEADING in page.text
    assert len({image["src"] for image in page.all("img")}) == 5
    for name in CLASSES:
        assert f'<th scope="row">{name}</th>' in section
    assert section.count("<td>none</td>") == 1
    for shown in ("50 %", "25 %", "100 %", "75 %", "0 %"):
        assert f">{shown}<" in section


def test_many_classes_are_folded(make_run):
    run = make_run("many", classes=[f"class {n}" for n in range(30)])
    section, _ = said(with_images(run))
    assert section.count("<tr>") == 20
    assert "The first 20 of 30 classes." in section


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"images": torch.zeros(5, 1, 8, 8)}, r"images is torch\.float32"),
        ({"images": torch.zeros(5, 8, 8, dtype=torch.uint8)}, "images is"),
        ({"image_labels": torch.tensor([0, 0, 1, 3, 4])}, r"image_labels should lie in \[0, 4\)"),
        ({"image_labels": torch.tensor([0, 0, 1])}, "image_labels is"),
        ({"image_confidences": torch.tensor([0.5, 0.25, float("nan"), 0.75, 0.1])}, "image_confidences should lie"),
        ({"image_confidences": torch.zeros(5, dtype=torch.float64)}, "image_confidences is"),
    ],
)
def test_what_does_not_fit_together_is_refused(run, changes, wrong):
    with pytest.raises(UserError, match=rf"findings\.safetensors: {wrong}"):
        said(with_images(run, **changes))


def test_what_is_missing_is_named(run):
    with_images(run)
    save_file({"images": TENSORS["images"]}, run.path / "student" / "findings.safetensors")
    with pytest.raises(UserError, match="it lacks image_labels, image_confidences"):
        said(run)
