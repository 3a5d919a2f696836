"""Runs on signals as a user meets them: what they leave, that they resume, one clear line for what is wrong."""

import json
import re
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from icckd.experiment import experiment
from icckd.experiment.progress import TrainingProgress
from tests.cli.test_commands import contents, error_line, run

NETWORKS = ["--teacher.arch", "signal-convnet-small", "--student.arch", "signal-convnet-small"]
SHORT = [
    *("--teacher.epochs", "1", "--teacher.batch_size", "8"),
    *("--student.epochs", "2", "--student.batch_size", "8"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Windows of Ada, Bo and Cy at two activities, in a file each."""
    path, random = tmp_path_factory.mktemp("signals"), np.random.default_rng(8)
    for name in ("Ada", "Bo", "Cy"):
        activity = np.array(["run", "walk"] * 6)
        signals = random.standard_normal((12, 2, 16)) + 3 * (activity == "run")[:, None, None]
        np.savez(path / f"{name}.npz", signals=signals, activity=activity, person=np.array([name] * 12))
    return path


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A short run that leaves Bo out."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert run("run", "--output", output, *settings(folder), "--data.left_out", '["Bo"]') == 0
    return output


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(experiment, "write_report", lambda folder: None)


def settings(folder):
    return ["--data.name", "signals", "--data.root", folder, *NETWORKS, *SHORT]


def test_a_run_and_its_page_say_who_is_left_out(finished, folder):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["data"]["people"] == {"train": ["Ada", "Cy"], "test": ["Bo"]}
    assert (summary["data"]["train_images"], summary["data"]["test_images"]) == (24, 12)
    for stage in ("teacher", "student"):
        assert 0 <= summary[stage]["macro_f1"] <= 1
        assert json.loads((finished / stage / "model.json").read_text())["image_size"] == [1, 16]
    examples = load_file(finished / "teacher" / "examples.safetensors")
    stored = torch.from_numpy(np.load(folder / "Bo.npz")["signals"]).float()
    assert torch.equal(examples["images"][:, :, 0], stored[examples["indices"]])
    page, text = ((finished / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert page.count('<svg class="signal"') == len(examples["images"]) > 0
    assert page.count("<polyline") == 2 * len(examples["images"])
    assert "trained on 2; left out, and measured on, 1: Bo" in page
    for said in (page, text):
        assert "Macro F1" in said
        assert "test windows" in said
        assert not re.search(r"\bimages?\b", re.sub(r"<style>.*</style>|<[^>]*>", "", said, flags=re.DOTALL))
        assert "synthetic" not in said


def test_a_stopped_run_is_resumed_to_the_same_bits(finished, folder, tmp_path, monkeypatch, no_report):
    steps = 0

    def stop_in_the_student_s_first_epoch(progress, *_):
        nonlocal steps
        steps += 1
        if steps == 4:
            signal.raise_signal(signal.SIGTERM)

    left_out = ["--data.left_out", '["Bo"]']
    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "step", stop_in_the_student_s_first_epoch)
        assert run("run", *settings(folder), *left_out, "--output", tmp_path / "run") == 143
    assert run("run", "--output", tmp_path / "run", "--resume") == 0
    for stage in ("teacher", "student"):
        name = f"{stage}/model.safetensors"
        assert contents(tmp_path / "run")[name] == contents(finished)[name]


def test_resume_refuses_other_people(finished, folder, tmp_path, capsys):
    assert run("run", "--output", finished, "--resume", "--data.left_out", '["Ada"]') == 2
    assert "--resume" in error_line(capsys)


def test_a_teacher_of_signals_serves_again(finished, folder, tmp_path, capsys, no_report):
    given = ["--teacher.weights", finished / "teacher", "--data.left_out", '["Ada"]']
    assert run("evaluate", "--output", tmp_path / "again", *settings(folder), *given) == 0
    capsys.readouterr()
    assert run("evaluate", "--data.name", "signals", *given[:2]) == 2
    assert "a network for 2 classes of 2×16 signals; synthetic signals has 5 classes of 3×64 signals" in error_line(
        capsys
    )
    assert run("evaluate", *given[:2]) == 2
    assert "2×16 signals; digits has 10 classes of 1×8×8 images" in error_line(capsys)


@pytest.mark.parametrize("method", ["staged", "rkd+attention+crd"])
def test_students_learn_of_signals_by_other_methods(folder, tmp_path, method, no_report):
    by = ["--student.loss.method", method, "--student.epochs", "3"]
    assert run("run", "--output", tmp_path / "run", *settings(folder), *by) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data.left_out": '["Eve"]'}, "data.left_out names 'Eve', whom"),
        ({"teacher.arch": "vgg8"}, "teacher.arch: vgg8 does not take signals or images of 2×1×16"),
    ],
)
def test_what_is_wrong_of_signals_is_said_in_one_line(folder, tmp_path, capsys, given, message):
    arguments = {"data.name": "signals", "data.root": str(folder), **given}
    flags = [text for name, value in arguments.items() for text in (f"--{name}", value)]
    assert run("run", "--output", tmp_path / "run", *NETWORKS, *SHORT, *flags) == 2
    assert message in error_line(capsys)
    assert not (tmp_path / "run").exists()


def test_numbers_are_names_of_people_too(tmp_path, capsys):
    arrays = {"signals": np.ones((4, 1, 8)), "activity": np.array([0, 1, 0, 1]), "person": np.array([1, 1, 2, 2])}
    np.savez(tmp_path / "a.npz", **arrays)
    assert run("run", "--data.name", "signals", "--data.root", tmp_path, "--data.left_out", "[3, 2]") == 2
    assert "data.left_out names '3', whom" in error_line(capsys)
