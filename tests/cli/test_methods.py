"""Methods and networks as the command line names them."""

import json
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

from icckd.experiment import experiment
from icckd.experiment.progress import TrainingProgress
from icckd.methods import StudentMethod
from icckd.settings import methods_of
from tests.cli.test_commands import SMALL, contents, error_line, image_folder, run
from tests.models.test_published import CLASSES, Published, resnet


@pytest.fixture
def without_report(monkeypatch):
    """The report takes half of so small a run's time."""
    monkeypatch.setattr(experiment, "write_report", lambda folder: None)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher trained for a moment on a folder of images: its folder, and the settings to distil from it."""
    folder = tmp_path_factory.mktemp("teacher")
    settings = [*image_folder(folder / "data"), *SMALL, "--student.arch", "resnet8"]
    assert run("teacher", "--output", folder / "run", *settings, "--teacher.arch", "wrn_16_1") == 0
    return folder / "run" / "teacher", [*settings, "--teacher.weights", folder / "run" / "teacher"]


@pytest.mark.parametrize("method", methods_of(StudentMethod))
def test_every_method_distils_and_leaves_a_plain_student(teacher, tmp_path, method, without_report):
    check_student(teacher, tmp_path, method)
    if method == "hint":
        state = torch.load(tmp_path / "run" / "student" / "checkpoint" / "state.pt", weights_only=True)
        assert "methods.hint.regressor.0.weight" in state["task"]


@pytest.mark.parametrize("method", ["none", "dkd+crd+similarity-preserving"])
def test_several_methods_and_none_do_too_and_are_reported_on(teacher, tmp_path, method):
    check_student(teacher, tmp_path, method)
    assert (tmp_path / "run" / "report.html").is_file()


def check_student(teacher, tmp_path, method):
    _, settings = teacher
    assert run("distill", *settings, "--student.loss.method", method, "--output", tmp_path / "run") == 0
    student = json.loads((tmp_path / "run" / "summary.json").read_text())["student"]
    assert student["method"] == method
    names = set() if method == "none" else {name.replace("-", "_") for name in method.split("+")}
    assert student["settings"].keys() == {"cross_entropy_weight", "backend", *names}
    (record,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert {f"train_{name}" for name in method.split("+") if method != "none"} <= record.keys()
    saved = load_file(tmp_path / "run" / "student" / "model.safetensors")
    assert {name.split(".")[0] for name in saved} == {"trunk", "classifier"}


def test_interrupted_and_resumed_ends_in_the_same_bits(teacher, tmp_path, monkeypatch, without_report):
    """By methods that keep what they remember, layers of their own, and running statistics."""
    _, settings = teacher
    settings = [*settings, "--student.loss.method", "crd+hint", "--student.epochs", "3", "--checkpoint_every", "1"]
    assert run("distill", *settings, "--output", tmp_path / "whole") == 0
    steps = 0

    def stop_at_the_third_step(progress, *_):
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "step", stop_at_the_third_step)
        assert run("distill", *settings, "--output", tmp_path / "parts") == 143
    assert run("distill", "--output", tmp_path / "parts", "--resume") == 0
    whole, parts = (contents(tmp_path / name / "student")["model.safetensors"] for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("student.loss.weight", 0.5, "student.loss.kd.weight"),
        ("student.loss.temperature", 2.0, "student.loss.kd.temperature"),
        ("student.loss.standardize", True, "student.loss.kd.standardize"),
        ("teacher.memory", 4, "teacher.memory.capacity"),
    ],
)
def test_a_setting_s_former_name_is_told_its_new_one(tmp_path, capsys, old, value, new):
    assert run("run", f"--{old}", value, "--output", tmp_path / "no") == 2
    assert error_line(capsys) == f"icckd: error: {old} is now called {new}; use that name"
    assert run("run", f"--{old}={value}", "--output", tmp_path / "no") == 2
    assert f"now called {new}" in error_line(capsys)
    nested = value
    for name in reversed(old.split(".")):
        nested = {name: nested}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(nested))
    assert run("run", "--config", tmp_path / "old.yaml", "--output", tmp_path / "no") == 2
    assert f"now called {new}" in error_line(capsys)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--student.loss.method", "kdd"), "student.loss.method is 'kdd'; it should be one of attention, crd"),
        (
            ("--teacher.loss.method", "kd"),
            "teacher.loss.method is 'kd'; it should be one of center, hierarchical, intra-class, spectrum, supcon, wsc",
        ),
        (("--student.loss.method", "dkd", "--student.loss.dkd.beta", "-1"), "student.loss.dkd.beta is -1.0; it should"),
        (("--student.loss.method", "crd", "--student.loss.crd.momentum", "1"), "student.loss.crd.momentum is 1.0; it "),
        (
            ("--student.loss.method", "hint", "--student.loss.hint.stage", "x"),
            "student.loss.hint.stage is 'x'; it should",
        ),
        (("--student.loss.cross_entropy_weight", "-1"), "student.loss.cross_entropy_weight is -1.0; it should be"),
        (("--student.loss.multi-head.beta", "1"), "no option; did you mean --student.loss.multi_head.beta"),
        (("--student.epoch_s", "1"), "no option; did you mean --student.epochs"),
        (("--student.loss.kd.temperature", "1e300"), "student.loss cannot be computed: OverflowError: "),
        (("--student.arch", "resnet9"), "student.arch is 'resnet9'; it should be one of convnet-large"),
        (("--student.arch", "timm:nothing"), "student.arch: "),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path, capsys, arguments, words):
    assert run("run", *arguments, "--output", tmp_path / "no") == 2
    assert words in error_line(capsys)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--student.loss.method", "crd", "--student.loss.crd.negatives", 10**12),
        ("--student.loss.method", "crd", "--student.loss.crd.negatives", 2**62),
        ("--student.loss.method", "kd+crd", "--student.loss.crd.dim", 10**12),
    ],
)
def test_sizes_beyond_all_memory_are_refused_before_anything_is_trained(tmp_path, capsys, arguments):
    assert run("run", *arguments, "--output", tmp_path / "no") == 2
    stage = arguments[0].split(".")[0].strip("-")
    assert f"{stage}.loss cannot be computed: it needs more memory than there is" in error_line(capsys)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("dtype", "capacity", "gigabytes"), [("float32", 10**12, "5,120,000.0"), ("float8", 10**9, "3,850.0")]
)
def test_a_memory_that_does_not_fit_is_refused_before_anything_is_trained(tmp_path, capsys, dtype, capacity, gigabytes):
    given = ("--teacher.memory.capacity", capacity, "--teacher.memory.dtype", dtype)
    assert run("run", *given, "--output", tmp_path / "no") == 2
    error = error_line(capsys)
    assert f"teacher.memory.capacity is {capacity}, which takes {gigabytes} GB: 10 classes of as many embed" in error
    assert "GB are free on the cpu" in error
    assert not (tmp_path / "no").exists()


def test_a_published_teacher_s_network_that_there_is_not_is_named_as_the_setting(tmp_path, capsys):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "x.pth")
    given = ("--teacher.weights", tmp_path / "x.pth", "--teacher.arch", "nope")
    assert run("evaluate", *given) == 2
    assert error_line(capsys).startswith("icckd: error: teacher.arch is 'nope'; it should be one of")


def test_settings_of_methods_that_are_not_in_force_are_ignored(teacher, tmp_path):
    _, settings = teacher
    assert run("distill", *settings, "--student.loss.dkd.beta", "-1", "--output", tmp_path / "run") == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "student.loss.kd.temperature" in text
    assert "student.loss.dkd" not in text


def test_a_run_from_before_a_method_was_added_is_resumed_and_one_with_former_names_told_of(
    teacher, tmp_path, capsys, without_report
):
    _, settings = teacher
    output = tmp_path / "run"
    assert run("distill", *settings, "--student.loss.dkd.beta", ".nan", "--output", output) == 0
    saved = yaml.safe_load((output / "config.yaml").read_text())
    del saved["student"]["loss"]["wttm"]
    (output / "config.yaml").write_text(yaml.safe_dump(saved))
    assert run("distill", "--output", output, "--resume") == 0
    assert run("distill", "--output", output, "--resume", "--student.loss.wttm.gamma", "0.3") == 2
    assert "student.loss.wttm.gamma is 0.3, but the run in" in capsys.readouterr().err
    saved["student"]["loss"]["weight"] = 0.9
    (output / "config.yaml").write_text(yaml.safe_dump(saved))
    assert run("distill", "--output", output, "--resume") == 2
    assert f"student.loss.weight of {output / 'config.yaml'} is now called student.loss.kd.weight" in error_line(capsys)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("student: {loss: {kd: null}}", "student.loss.kd"),
        ("student: {loss: {method: null}}", "student.loss.method"),
        ("student.loss.kd.temperature: null", "student.loss.kd.temperature"),
        ("teacher: {milestones: null}", "teacher.milestones"),
        ("seed: null", "seed"),
    ],
)
def test_null_is_told_of_where_a_setting_cannot_be(tmp_path, capsys, text, name):
    (tmp_path / "null.yaml").write_text(text)
    assert run("run", "--config", tmp_path / "null.yaml", "--output", tmp_path / "no") == 2
    assert error_line(capsys) == f"icckd: error: {name} is null; leave it out for its default, or give a value"


def test_a_published_teacher_is_given_by_its_file_and_the_name_of_its_network(tmp_path, without_report):
    settings = image_folder(tmp_path / "data", classes=tuple("abcde"))
    net = Published(3)
    resnet(net, torch.zeros(1, 1, 8, 8, dtype=torch.float64), 8, (16, 16, 32, 64))
    assert len(net.tensors["fc.bias"]) == CLASSES
    torch.save({"epoch": 240, "model": net.tensors}, tmp_path / "resnet8.pth")
    given = [*settings, *SMALL, "--teacher.arch", "resnet8", "--teacher.weights", tmp_path / "resnet8.pth"]
    assert run("distill", *given, "--output", tmp_path / "run") == 0
    kept = load_file(tmp_path / "run" / "teacher" / "model.safetensors")
    assert torch.equal(kept["classifier.weight"], net.tensors["fc.weight"])


def test_a_setting_in_a_file_that_is_none_is_named(tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text("student:\n  loss:\n    kd:\n      weigth: 1\n")
    assert run("run", "--config", tmp_path / "wrong.yaml", "--output", tmp_path / "no") == 2
    assert "student.loss.kd.weigth is no setting; icckd run --help has all" in error_line(capsys)
