"""report.html and report.md as a reader, a browser and an attacker meet them."""

import re

import pytest
import torch
from safetensors.torch import save_file

from icckd.errors import UserError
from icckd.report import write_report
from icckd.report.charts import sections
from icckd.report.results import read_results
from tests.report.parsed import Page


def report(run):
    write_report(run.path)
    return (run.path / "report.html").read_text(), (run.path / "report.md").read_text()


def test_both_pages_show_every_main_number(run):
    page, markdown = report(run)
    text = Page(page).text
    for stage in ("teacher", "student"):
        numbers = run.summary[stage]
        for name in ("intra_class_distance", "inter_class_distance", "distance_ratio", "soft_label_entropy"):
            assert f"{numbers[name]:.4f}" in text
            assert f"{numbers[name]:.4f}" in markdown
        for value in (
            numbers["test_accuracy"],
            numbers["expected_calibration_error"],
            *numbers["per_class_accuracy"],
        ):
            assert f"{100 * value:.2f} %" in text
            assert f"{100 * value:.2f} %" in markdown
    for shown in ("40,000", "5,000", "1 min 15 s", "2.13.0", "convnet-large", "convnet-small", "digits", *run.classes):
        assert shown in text
        assert shown in markdown


def test_probes_of_fine_classes_are_shown_where_there_are_any(run):
    assert all("Fine classes" not in text for text in report(run))
    run.summary["data"]["fine_classes"] = 12
    run.summary["teacher"].update(fine_probe=0.7654, fine_probe_soft_labels=0.4321)
    run.write()
    page, markdown = report(run)
    for text in (Page(page).text, markdown):
        for shown in ("Fine classes in features", "76.54 %", "Fine classes in soft labels", "43.21 %"):
            assert text.count(shown) == 1
        assert "4 coarse classes, which are made of 12 fine ones" in text


def test_collapse_is_drawn_where_training_images_were_asked_about(run):
    assert all("Collapse" not in text for text in report(run))
    names = ("intra_class_distance", "distance_ratio", "soft_label_entropy", "accuracy")
    for place, record in enumerate(run.metrics):
        record |= {f"training_{name}": 0.1 * place + 0.01 * number for number, name in enumerate(names)}
    run.write()
    page, markdown = report(run)
    section = page.split("<h2>Collapse</h2>")[1].split("</section>")[0]
    labels = [svg["aria-label"] for svg in Page(section).all("svg")]
    assert len(labels) == 4
    assert labels[1] == (
        "Distance ratio in training: teacher 0.01 at epoch 1, 0.21 at epoch 3; student 0.31 at epoch 1, 0.51 at epoch 3"
    )
    assert "Soft-label entropy in training" in markdown


def test_an_attack_is_shown_with_what_it_left_of_each_class(run):
    assert all("ttacked" not in text for text in report(run))
    run.settings["evaluation"] |= {"attack": "pgd", "epsilon": 0.125, "steps": 7, "step_size": 0.025}
    run.summary["teacher"] |= {
        "robust_accuracy": 0.4567, "worst_class_robust_accuracy": 0.0123, "robust_accuracy_spread": 0.8765,
        "class_accuracy_spread": 0.1357, "per_class_robust_accuracy": [0.11, 0.22, None, 0.44],
    }  # fmt: skip
    run.summary["student"] |= {
        "adversarial_temperatures": [1.25, 0.75, 1.0, 0.5], "natural_temperatures": [1.5, 0.875, 1.0, 0.625],
    }  # fmt: skip
    run.write()
    page, markdown = report(run)
    for text in (Page(page).text, markdown):
        for shown in ("45.67 %", "1.23 %", "0.8765", "0.1357", "22.00 %", "44.00 %", "0.7500", "0.8750", "0.6250"):
            assert shown in text
        assert "PGD: pixels in [0, 1] changed by 0.125 at most, in 7 steps of 0.025 from a random start" in text
    row = next(line for line in markdown.splitlines() if line.startswith(f"| {run.classes[2]} "))
    assert [cell.strip() for cell in row.split("|")[-4:-1]] == ["–", "1.0000", "1.0000"]


def test_student_is_compared_with_its_teacher(run):
    run.summary["teacher"]["test_accuracy"], run.summary["student"]["test_accuracy"] = 0.9777, 0.95
    run.write()
    sentence = "The student names 95.00 % of the test images correctly, 2.77 percentage points less than its teacher"
    for text in report(run):
        assert sentence in text
        assert "8.0 times fewer parameters" in text
        assert "One run with one seed" in text


def test_the_page_needs_nothing_but_itself(run):
    page = Page(report(run)[0])
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name, "#")
            assert value.startswith("#") or (tag == "img" and value.startswith("data:image/png;base64,"))
    html = report(run)[0]
    assert "http://" not in html
    assert "https://" not in html
    assert not re.search(r"url\((?!#)|@import", html)


def test_the_page_is_accessible(run):
    page = Page(report(run)[0])
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("title")) == len(page.all("h1")) == 1
    assert any(attributes.get("name") == "viewport" for attributes in page.all("meta"))
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["aria-label"] for svg in page.all("svg"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert len(page.all("figcaption")) == len(page.all("figure")) == len(page.all("svg")) + len(page.all("img"))


def test_ids_are_unique_and_references_lead_somewhere(run):
    page = report(run)[0]
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:url\(|href=")#([^")]*)', page)
    assert set(references) <= set(ids)
    assert references


def test_every_curve_of_a_complete_run_is_drawn(run):
    titles = Page(report(run)[0]).text
    assert len(Page(report(run)[0]).all("svg")) == 11
    for title in ("Accuracy", "Teacher's training loss", "Student's training loss", "Distance ratio", "Active anchors"):
        assert title in titles


def test_what_a_procedure_s_losses_and_weights_of_stages_are_is_drawn(run):
    student = [record for record in run.metrics if record["stage"] == "student"]
    for epoch, record in enumerate(student):
        del record["train_kd"]
        record["train_moments"] = 0.5
        record |= {f"train_weight_stage{number}": 1 / (epoch + 1) for number in range(1, epoch + 2)}
    run.write()
    charts = {chart.name: chart for section in sections(read_results(run.path)) for chart in section.charts}
    labels = [curve.label for curve in charts["student-loss"].curves]
    assert labels == ["total", "cross-entropy", "moments"]
    first, second, third = charts["stage-weights"].curves
    assert [curve.label for curve in (first, second, third)] == ["stage1", "stage2", "stage3"]
    assert first.values == [1, 1 / 2, 1 / 3]
    assert (second.values, third.values) == ([None, 1 / 2, 1 / 3], [None, None, 1 / 3])
    assert "Weights of the student's stages" in Page(report(run)[0]).text


def test_no_two_of_six_losses_are_drawn_alike(run):
    for record in run.metrics:
        if record["stage"] == "student":
            record |= {f"train_of_{number}": 0.5 for number in range(3)}
    run.write()
    charts = {chart.name: chart for section in sections(read_results(run.path)) for chart in section.charts}
    curves = charts["student-loss"].curves
    assert len(curves) == 6
    assert len({curve.style for curve in curves}) == 6


def test_soft_labels_are_shown_at_both_temperatures(run):
    run.settings["student"]["loss"]["kd"]["temperature"] = 2.5
    run.examples["logits"] = torch.tensor([[3.0, 1.0, 0.0, -2.0]]).repeat(3, 1)
    run.examples["labels"] = torch.tensor([0, 0, 1])
    run.write()
    text = Page(report(run)[0]).text
    assert "T = 2.5" in text
    for temperature in (2.5, 1.0):
        for value in torch.tensor([3.0, 1.0, 0.0, -2.0]).div(temperature).softmax(0).tolist():
            assert f"{100 * value:.1f}%" in text
    assert text.count("taken for zero") == 1


def test_standardised_logits_are_shown_as_the_student_is_given_them(run):
    logits = torch.tensor([9.0, 2.0, 0.0, -3.0])
    run.settings["student"]["loss"]["kd"]["standardize"] = True
    run.examples["logits"] = logits.repeat(3, 1)
    run.write()
    text = Page(report(run)[0]).text
    shown = ((logits - logits.mean()) / logits.std() / 4).softmax(0)
    assert all(f"{100 * value:.1f}%" in text for value in shown.tolist())
    assert "standardising" in text


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [8, 200])
def test_images_of_any_size_and_channels(run, channels, size):
    run.examples["images"] = torch.zeros(3, channels, size, size, dtype=torch.uint8)
    run.write()
    assert len(Page(report(run)[0]).all("img")) == 3


def test_many_classes_show_the_hardest_and_fold_the_others(make_run):
    run = make_run("many", classes=[f"class-{i:03d}" for i in range(200)])
    run.summary["student"]["per_class_accuracy"] = [i / 200 for i in range(200)]
    run.write()
    page, markdown = report(run)
    before, after = page.split("<details><summary>The other 180 classes</summary>")
    table = before[before.index("Accuracy by class") :]
    assert re.findall(r'<th scope="row">(class-\d+)', table) == [f"class-{i:03d}" for i in range(20)]
    assert re.findall(r'<th scope="row">(class-\d+)', after) == [f"class-{i:03d}" for i in range(20, 200)]
    assert "class-019" in markdown
    assert "class-020" not in markdown


def test_a_teacher_alone(run):
    del run.summary["student"]
    run.metrics = run.metrics[:3]
    run.write()
    page, markdown = report(run)
    for text in (page, markdown):
        assert "This run has no student." in text
        assert "The teacher names" in text
    assert "convnet-large on digits" in markdown
    assert "training loss" not in Page(page).text.replace("Teacher's training loss", "")


def test_a_student_alone(run):
    del run.summary["teacher"]
    run.metrics = run.metrics[3:]
    run.write()
    for text in report(run):
        assert "This run has no teacher." in text
        assert "The student names" in text


def test_a_run_that_has_not_finished(run):
    for name in ("summary.json", "student/model.json", "teacher/model.json", "teacher/examples.safetensors"):
        (run.path / name).unlink()
    page, markdown = report(run)
    for text in (page, markdown):
        assert "The teacher's training has not finished; 3 epochs are shown." in text.replace("&#x27;", "'")
    assert "no teacher/examples.safetensors" in page


def test_a_run_that_has_only_begun(run):
    for name in ("summary.json", "metrics.jsonl", "teacher/examples.safetensors"):
        (run.path / name).unlink()
    for text in report(run):
        assert "This run has no teacher." in text


def test_unknown_values_are_dashes_and_gaps(run):
    run.summary["teacher"]["distance_ratio"] = None
    run.summary["student"]["per_class_accuracy"][1] = None
    run.summary["student"]["per_class_robust_accuracy"] = []
    for record in run.metrics:
        record["train_loss"] = None
    run.metrics[1]["test_accuracy"] = None
    run.write()
    page, markdown = report(run)
    assert "–" in Page(page).text
    assert "–" in markdown
    assert "nan" not in markdown.lower()


def test_what_is_in_force_is_shown_where_settings_are_null(run):
    run.settings["teacher"].update(
        {"schedule": "step", "epochs": 240, "warmup_epochs": 0.0, "milestones": [0.625, 0.75, 0.875]},
        learning_rate=0.05,
        nesterov=False,
        decay_all=True,
    )
    run.write()
    page, markdown = report(run)
    for text in (Page(page).text, markdown):
        for shown in (
            "1,438; of each channel, less the mean 0.25, divided by 0.125",
            "padded by 3 pixels a side and cropped",
            "intra-class (weight 0.05, margin 0.2, margin_space probability",
            "0.1 · cross-entropy + 0.9 · kd (temperature 4, standardize false, warmup_epochs 0)",
            "SGD with momentum 0.9; weight decay 0.0005 of every parameter",
            "SGD with Nesterov momentum 0.9; weight decay 0.0005 of weights only",
            "0.05, then × 0.1 after epochs 150, 180, 210 of 240",
            "rises to 0.1 over 1 epoch, then falls to 0 along a cosine by epoch 20",
        ):
            assert shown in text
    cells = re.findall(r'<th scope="row">([^<]*)</th><td>(null[^<]*)</td>', page)
    assert {
        ("data.mean", "null: [0.25]"),
        ("data.augmentation.crop_padding", "null: 3"),
        ("data.augmentation.resized_crop", "null"),
        ("student.loss.cross_entropy_weight", "null: 0.1"),
        ("student.loss.kd.weight", "null: 0.9"),
    } <= set(cells)


def test_what_a_reader_must_know_is_noted(run):
    run.settings["data"]["validation"] = 0.1
    run.settings["teacher"]["weights"] = "runs/other/teacher"
    run.metrics[2]["skipped_steps"] = 2
    run.write()
    for text in report(run):
        assert "of the validation images" in text
        assert "10 % of the training images" in text
        assert "read from runs/other/teacher" in text
        assert "2 training steps of the teacher were skipped" in text


def test_hostile_strings_stay_text(make_run):
    hostile = '<script>alert("1")</script>'
    run = make_run("hostile", classes=[hostile, "'\"><img src=x onerror=alert(1)>", "$x^2$|`a`", "\x1b[31mred\nline"])
    run.settings["data"]["name"] = run.settings["teacher"]["weights"] = hostile
    run.summary["environment"][hostile] = hostile
    run.model["arch"] = hostile
    run.write()
    page, markdown = report(run)
    parsed = Page(page)
    assert not parsed.all("script")
    assert len(parsed.all("img")) == 3
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert hostile in parsed.text
    assert "<script" not in markdown
    assert "\x1b" not in markdown + page
    table = next(line for line in markdown.splitlines() if "$x^2$" in line)
    assert table.count("|") - table.count("\\|") == 4


def test_a_lone_surrogate_and_endless_names_can_be_written(make_run):
    run = make_run("odd", classes=["\ud800", "x" * 100_000, "\u202eright to left", ""])
    page, _ = report(run)
    assert "\N{REPLACEMENT CHARACTER}" in page
    assert "x" * 101 not in page


def test_huge_numbers_do_not_stop_the_report(run):
    for record in run.metrics:
        record["train_loss"] = 1e308 if record["epoch"] == 1 else -1e308
        record["train_cross_entropy"] = 10**400
    run.summary["teacher"]["seconds"] = float("inf")
    run.write()
    report(run)


def test_the_same_run_gives_the_same_bytes(make_run, drawn_anew):
    first, second = make_run("first", seed=3), make_run("second", seed=3)
    assert report(first) == report(second)
    assert report(first) != report(make_run("third", seed=4))


def breakages(path, run):
    """Ways to break a run's folder, each with the file that the message must name."""
    tensors = run.examples
    cases = {
        "config.yaml": ["{", "- 1", "teacher: 3", "teacher: {epochs: {a: 1}}", "a: &a [*a]\nseed: *a", "[" * 100_000],
        "summary.json": [
            "",
            "[]",
            '{"teacher": 3}',
            '{"data": 3}',
            '{"student": {"settings": []}}',
            "[" * 100_000,
            '{"teacher": {"per_class_accuracy": 3}}',
            '{"teacher": {"per_class_robust_accuracy": 3}}',
            '{"teacher": {"per_class_robust_accuracy": [0.5]}}',
        ],
        "metrics.jsonl": ["3\n", '{"stage": "teacher"}\n', '{"stage": "x", "epoch": 1}\n', '{"stage": []', "\n"],
        "teacher/model.json": ["{", '{"classes": 3}', '{"classes": ["a", "b"]}'],
        "teacher/examples.safetensors": [
            b"",
            b"\xff" * 64,
            {**tensors, "logits": tensors["logits"][:, :-1].contiguous()},
            {**tensors, "logits": tensors["logits"] / 0},
            {**tensors, "labels": tensors["labels"] + 100},
            {**tensors, "labels": torch.tensor(1)},
            {**tensors, "images": tensors["images"].float()},
            {**tensors, "images": tensors["images"][0]},
            {**tensors, "images": tensors["images"][..., :0].contiguous()},
            {"images": tensors["images"]},
        ],
    }
    for name, contents in cases.items():
        for content in contents:
            yield path / name, content


def write(path, content):
    if isinstance(content, dict):
        save_file(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_broken_file_is_named_in_one_line_and_the_old_report_stays(run):
    before = report(run)
    for path, content in breakages(run.path, run):
        good = path.read_bytes()
        write(path, content)
        with pytest.raises(UserError) as caught:
            write_report(run.path)
        named = run.path / "summary.json" if content == '{"classes": ["a", "b"]}' else path
        assert str(named) in str(caught.value)
        assert "\n" not in str(caught.value)
        path.write_bytes(good)
    assert ((run.path / "report.html").read_text(), (run.path / "report.md").read_text()) == before


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="not a run's folder"):
            write_report(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("epochs", "told"), [(5, True), (20, False)])
def test_a_weight_that_never_rose_to_what_is_set_is_told(run, epochs, told):
    run.settings["student"]["epochs"] = epochs
    run.settings["student"]["loss"] |= {"method": "dkd"}
    run.summary["student"] |= {"method": "dkd"}
    run.write()
    for text in report(run):
        assert ("weight rises over 20 epochs and so ended, after 5, at 0.25 of what is set" in text) == told


@pytest.mark.parametrize("method", ["intra-class", "supcon"])
def test_the_intra_class_loss_of_another_method_is_a_term_of_its_loss(run, method):
    run.settings["teacher"]["loss"]["method"] = method
    run.write()
    page, _ = report(run)
    of_another = method != "intra-class"
    assert (">intra class<" in page) == of_another
    assert ("Before its weight λ" in page) != of_another
