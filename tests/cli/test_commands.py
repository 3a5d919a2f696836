"""The command line as a user meets it: files, exit codes, one clear line for what is wrong."""

import gzip
import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from icckd.cli import main
from icckd.data import load_data
from icckd.settings import DataSettings, Settings

SHORT = [
    *("--teacher.arch", "convnet-small", "--teacher.epochs", "2", "--teacher.warmup_epochs", "0.5"),
    *("--student.epochs", "1", "--student.warmup_epochs", "0.5"),
]


def run(*arguments):
    """The command in this process; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def process(*arguments, env=os.environ, **options):
    """The command in a process of its own, with as many threads as this one has: other sums have other bits."""
    return subprocess.Popen(
        [sys.executable, "-m", "icckd", *map(str, arguments)],
        env={**env, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
    )


def error_line(capsys):
    """What was printed on standard error, which must be one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("icckd: error: ")
    return lines[0]


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


SMALL = [
    *("--teacher.arch", "convnet-small", "--teacher.epochs", "1", "--teacher.batch_size", "8"),
    *("--student.epochs", "1", "--student.batch_size", "8"),
]


def image_folder(root, images=range(8), classes=("dark", "light"), splits=("train", "val")):
    """Grey pictures, 8×8; and the settings that read them."""
    for split in splits:
        for level, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in images:
                pixels = np.random.default_rng(number).integers(100 * level, 100 * level + 80, (8, 8))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:03}.png")
    return ["--data.name", "image-folder", "--data.root", str(root)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run on the digits, made once."""
    output = tmp_path_factory.mktemp("runs") / "short"
    assert run("run", "--output", output, *SHORT) == 0
    return output


def test_run_writes_what_it_promises(finished):
    names = set(contents(finished))
    assert {"config.yaml", "metrics.jsonl", "summary.json", "report.html", "report.md"} <= names
    for stage in ("teacher", "student"):
        assert {f"{stage}/model.safetensors", f"{stage}/model.json", f"{stage}/checkpoint/state.pt"} <= names
    assert not [name for name in names if name.endswith(".tmp")]


def test_summary_has_every_number(finished):
    summary = json.loads((finished / "summary.json").read_text())
    keys = {
        *("test_accuracy", "intra_class_distance", "inter_class_distance", "distance_ratio", "soft_label_entropy"),
        *("expected_calibration_error", "per_class_accuracy", "seconds", "recall_at_1", "worst_class_accuracy"),
        *("class_accuracy_gap", "best_test_accuracy", "best_epoch"),
    }
    assert keys <= summary["teacher"].keys()
    assert keys | {"method"} <= summary["student"].keys()
    assert {"torch", "python", "device"} <= summary["environment"].keys()
    assert len(summary["teacher"]["per_class_accuracy"]) == 10
    data = load_data(DataSettings())
    assert summary["data"] == {
        "train_images": len(data.train_images),
        "test_images": len(data.test_images),
        "mean": list(data.mean),
        "std": list(data.std),
        "augmentation": {"crop_padding": 1, "flip": False, "rotation": 0.0, "resized_crop": None},
    }
    assert summary["teacher"]["distance_ratio"] == pytest.approx(
        summary["teacher"]["intra_class_distance"] / summary["teacher"]["inter_class_distance"]
    )


def test_metrics_have_a_line_per_epoch_and_the_last_is_the_summary(finished):
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in records] == [("teacher", 1), ("teacher", 2), ("student", 1)]
    assert {"train_loss", "train_cross_entropy", "train_intra_class", "train_active_fraction"} <= records[0].keys()
    assert {"train_loss", "train_cross_entropy", "train_kd", "learning_rate", "seconds"} <= records[2].keys()
    summary = json.loads((finished / "summary.json").read_text())
    best = max(records[:2], key=lambda record: record["test_accuracy"])
    assert summary["teacher"]["best_test_accuracy"] == best["test_accuracy"]
    assert summary["teacher"]["best_epoch"] == best["epoch"]
    assert records[1]["test_accuracy"] == summary["teacher"]["test_accuracy"]
    assert records[2]["distance_ratio"] == summary["student"]["distance_ratio"]


def test_the_saved_config_runs_again_to_the_same_bits(finished, tmp_path):
    assert run("run", "--config", finished / "config.yaml", "--output", tmp_path / "again") == 0
    for stage in ("teacher", "student"):
        first, second = (load_file(p / stage / "model.safetensors") for p in (finished, tmp_path / "again"))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_distill_and_evaluate_take_a_trained_teacher(finished, tmp_path, capsys):
    weights = finished / "teacher" / "model.safetensors"
    assert run("distill", "--teacher.weights", weights, "--output", tmp_path / "distilled", *SHORT) == 0
    first, second = (load_file(p / "student" / "model.safetensors") for p in (finished, tmp_path / "distilled"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    capsys.readouterr()
    assert run("evaluate", "--teacher.weights", finished / "teacher") == 0
    accuracy = json.loads((finished / "summary.json").read_text())["teacher"]["test_accuracy"]
    assert f"accuracy {accuracy:.4f}" in capsys.readouterr().out


def test_report_is_made_again_from_the_files(finished, capsys):
    before = (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    assert run("report", "--output", finished) == 0
    assert (finished / "report.html").read_text() == before
    assert "|" in capsys.readouterr().out


def test_doctor_names_every_backend_and_kind_of_method(capsys):
    assert run("doctor") == 0
    out = capsys.readouterr().out
    for word in ("torch", "reference", "cuda", "triton", "convnet-small", "supcon", "similarity-preserving", "absld"):
        assert word in out


def setting_names(kind, prefix=""):
    for field in fields(kind):
        nested = field.default_factory if callable(field.default_factory) else None
        if is_dataclass(nested):
            yield from setting_names(nested, f"{prefix}{field.name}.")
        else:
            yield f"--{prefix}{field.name}"


def test_help_explains_every_setting(capsys):
    assert run("run", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in setting_names(Settings):
        assert f"{name} " in text
    assert "Temperature τ of the intra-class loss." in text
    assert "exit codes" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "no command given"),
        (["walk"], "walk"),
        (["run", "--teacher.epochs", "many"], "teacher.epochs"),
        (["run", "--teacher.epochs", "0"], "teacher.epochs is 0; it should be 1 or more"),
        (["run", "--teacher.loss.temperature", "-1"], "teacher.loss.temperature"),
        (["run", "--teacher.loss.wieght", "1"], "wieght"),
        (["run", "--student.arch", "resnet9000"], "student.arch"),
        (["run", "--data.name", "mnist"], "data.name"),
        (["run", "--data.name", "cifar10", "--data.root", "/no/such/folder"], "/no/such/folder"),
        (["run", "--config", "/no/such.yaml"], "/no/such.yaml"),
        (["run", "--teacher.batch_size", "5000"], "teacher.batch_size"),
        (["run", "--teacher.accumulate", "33"], "teacher.accumulate"),
        (["run", "--device", "cpu", "--student.cuda_graph", "true"], "student.cuda_graph"),
        (["run", "--teacher.loss.backend", "cuda"], "teacher.loss.backend"),
        (["distill"], "--teacher.weights"),
        (["evaluate"], "--teacher.weights"),
        (["distill", "--teacher.weights", "/no/such/folder"], "/no/such/folder"),
        (["report"], "--output"),
        (["run", "--resume"], "--output"),
        (["run", "--resume", "--output"], "--output"),
        (["run", "--teacher.epoch", "3"], "--teacher.epochs"),
        (["run", "--teacher.epoch=3"], "--teacher.epochs"),
        (["teacher", "--teacher.loss.weigh", "1"], "--teacher.loss.weight"),
        (["run", "--data.valid", "0.5"], "--data.validation"),
        (["run", "--out", "x"], "--output"),
        (["run", "--over"], "--overwrite"),
        (["run", "--o", "x"], "--output, --overwrite"),
        (["run", "--output", "x", "--res"], "--resume"),
        (["distill", "--teacher.weig", "x"], "--teacher.weights"),
        (["doctor", "--deb"], "--debug"),
        (["report", "--he"], "--help"),
        (["--vers"], "--vers"),
        (["run", "--teacher", "{epoch: 3}"], "teacher.epoch"),
        (["run", "--output", "out\udce9"], "--output is 'out\\udce9', which is not UTF-8"),
        (["evaluate", "--output", "out\udce9", "--teacher.weights", "x"], "--output is 'out\\udce9'"),
        (["run", "--data.root", "data\udce9"], "data.root is 'data\\udce9'"),
        (["run", "--teacher.weights", "t\udce9"], "teacher.weights is 't\\udce9'"),
        (["run", "--student.arch", "s\udce9"], "student.arch is 's\\udce9'"),
        (["run", "--config", "c\udce9.yaml"], "config"),
        (["run", "--output", "a\0b"], "--output is 'a\\x00b'; it should hold no zero byte"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert named in error_line(capsys)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there(capsys):
    assert run("run", "--device", "cuda") == 2
    assert "device is cuda" in error_line(capsys)


@pytest.mark.parametrize(
    "content",
    [
        b"teacher: {epochs: x}",
        b"teacher: [",
        b"nonsense: 1",
        b"data: {nam: digits}",
        b"teacher: {epoch: 3}",
        b'teacher: {weights: "a\\0b"}',
        b'student: {arch: "\\ud800"}',
        b"\x00",
        b"\xff\xfe\x80",
        b"[" * 5000,
    ],
)
def test_a_wrong_config_file(tmp_path, capsys, content):
    (tmp_path / "c.yaml").write_bytes(content)
    assert run("run", "--config", tmp_path / "c.yaml", "--output", tmp_path / "out") == 2
    error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_anothers_results_are_kept(finished, capsys):
    before = contents(finished)
    assert run("run", "--output", finished, *SHORT) == 2
    assert "--resume" in error_line(capsys)
    assert run("run", "--output", finished, "--overwrite", "--teacher.arch", "nonsense") == 2
    assert run("run", "--output", finished, "--resume", "--teacher.epochs", "9") == 2
    assert contents(finished) == before


def test_a_teacher_for_other_images_is_refused(finished, tmp_path, capsys):
    root = tmp_path / "fashion"
    root.mkdir()
    write_idx_data(root)
    arguments = ("--data.name", "fashion-mnist", "--data.root", root, "--teacher.weights", finished / "teacher")
    assert run("evaluate", *arguments) == 2
    assert "1×8×8" in error_line(capsys)


def write_idx_data(root, images=80):
    for split in ("train", "t10k"):
        header = struct.pack(">IIII", 2051, images, 28, 28)
        (root / f"{split}-images-idx3-ubyte").write_bytes(header + os.urandom(images * 784))
        labels = bytes(i % 10 for i in range(images))
        (root / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">II", 2049, images) + labels))


def test_an_output_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert run("teacher", "--output", tmp_path / "file" / "run", *SHORT) == 2
    assert error_line(capsys) == f"icckd: error: {tmp_path / 'file' / 'run'}: Not a directory"


def test_debug_shows_the_traceback(capsys):
    assert run("run", "--teacher.epochs", "0", "--debug") == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("icckd: error: teacher.epochs")


def test_divergence_is_exit_3_and_keeps_a_checkpoint_that_loads(tmp_path, capsys):
    assert run("teacher", "--output", tmp_path, "--teacher.learning_rate", "1e30", *SHORT) == 3
    assert "not finite" in capsys.readouterr().err
    assert torch.load(tmp_path / "teacher" / "checkpoint" / "state.pt", weights_only=True)["epoch"] == 0


@pytest.mark.parametrize(("epochs", "batch_size"), [(1, 1437), (1, 700), (3, 700)])
def test_divergence_within_few_steps_is_exit_3_too(tmp_path, capsys, epochs, batch_size):
    settings = [
        *("--teacher.arch", "convnet-small", "--teacher.warmup_epochs", "0", "--teacher.learning_rate", "1e30"),
        *("--teacher.epochs", epochs, "--teacher.batch_size", batch_size),
    ]
    assert run("run", "--output", tmp_path, *settings, *SHORT[6:]) == 3
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("icckd: error: the teacher's training diverged: ")
    assert "teacher.learning_rate" in message
    names = set(contents(tmp_path))
    assert not [name for name in names if name.startswith("student/") or "model" in name]
    state = torch.load(tmp_path / "teacher" / "checkpoint" / "state.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["task"].values())
    assert run("run", "--output", tmp_path, "--resume") == 3
    assert capsys.readouterr().err.splitlines()[-1] == message
    assert run("report", "--output", tmp_path) == 0


def test_a_students_divergence_leaves_its_teacher(tmp_path, capsys):
    data = image_folder(tmp_path / "data")
    settings = [*data, *SMALL, "--student.warmup_epochs", "0"]
    assert run("run", "--output", tmp_path / "run", *settings, "--student.learning_rate", "1e30") == 3
    assert "the student's training diverged" in capsys.readouterr().err
    assert (tmp_path / "run" / "teacher" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "student" / "model.safetensors").exists()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run on a folder of images, made once: its output and its settings."""
    folder = tmp_path_factory.mktemp("small")
    settings = [*image_folder(folder / "data"), *SMALL]
    assert run("run", "--output", folder / "run", *settings) == 0
    return folder / "run", settings


def test_a_given_teacher_that_is_not_finite_is_refused_by_name(small, tmp_path, capsys):
    output, settings = small
    shutil.copytree(output / "teacher", tmp_path / "teacher")
    good = load_file(output / "teacher" / "model.safetensors")
    name = "classifier.weight"
    for value, message in (
        (float("nan"), f"not finite, in {name}"),
        (3e38, "answers on the test set are not finite"),
    ):
        spoilt = good | {name: torch.full_like(good[name], value)}
        save_file(spoilt, tmp_path / "teacher" / "model.safetensors")
        for command in ("run", "distill", "evaluate"):
            before = contents(output)
            arguments = ("--teacher.weights", tmp_path / "teacher", "--output", output, "--overwrite")
            capsys.readouterr()
            assert run(command, *settings, *arguments) == 2
            error = capsys.readouterr().err.splitlines()[-1]
            assert message in error
            assert str(tmp_path / "teacher") in error
            assert contents(output) == before


def remember(path):
    """Every file's content and when it was written."""
    return {str(p.relative_to(path)): (p.read_bytes(), p.stat().st_mtime_ns) for p in path.rglob("*") if p.is_file()}


def test_a_finished_run_is_not_written_again(small):
    output, _ = small
    before = remember(output)
    assert run("run", "--output", output, "--resume") == 0
    after = remember(output)
    assert {name: after[name] for name in after if "report" not in name} == {
        name: before[name] for name in before if "report" not in name
    }
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }


def test_a_finished_teacher_is_not_written_again(small, tmp_path):
    whole, settings = small
    output = tmp_path / "run"
    assert run("teacher", "--output", output, *settings, "--student.batch_size", "64") == 0
    summary = json.loads((output / "summary.json").read_text())
    metrics = (output / "metrics.jsonl").read_text()
    before = remember(output / "teacher")
    # The student's settings were not in force: they need not be those of a run that had no student.
    assert run("run", "--output", output, "--resume", "--student.batch_size", "8") == 0
    assert remember(output / "teacher") == before
    assert json.loads((output / "summary.json").read_text())["teacher"] == summary["teacher"]
    assert (output / "metrics.jsonl").read_text().startswith(metrics)
    assert_same_models(output, whole)
    assert run("run", "--output", output, "--resume", "--student.batch_size", "16") == 2


def test_a_stage_without_its_summary_is_concluded_to_the_same_bits(small, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(small[0], output)
    summary = json.loads((output / "summary.json").read_text())
    del summary["student"]
    (output / "summary.json").write_text(json.dumps(summary))
    assert run("run", "--output", output, "--resume") == 0
    assert_same_models(output, small[0])
    assert "student" in json.loads((output / "summary.json").read_text())


def grown(root):
    image_folder(root, range(8, 12), splits=["train"])


def other_test_images(root):
    (root / "val" / "dark" / "000.png").unlink()


def a_class_renamed(root):
    for split in ("train", "val"):
        (root / split / "dark").rename(root / split / "black")


def labels_changed(root):
    dark, light = (root / "train" / name / "000.png" for name in ("dark", "light"))
    kept = dark.read_bytes()
    dark.write_bytes(light.read_bytes())
    light.write_bytes(kept)


def order_changed(root):
    (root / "train" / "dark" / "000.png").rename(root / "train" / "dark" / "999.png")


@pytest.mark.parametrize("change", [grown, other_test_images, a_class_renamed, labels_changed, order_changed])
def test_resume_refuses_other_data(small, tmp_path, capsys, change):
    output, root = tmp_path / "run", tmp_path / "data"
    data = image_folder(root)
    assert run("teacher", "--output", output, *data, *SMALL) == 0
    before = remember(output)
    change(root)
    capsys.readouterr()
    assert run("run", "--output", output, "--resume") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("icckd: error: --resume: data.")
    assert "differs from what the run in" in message
    assert remember(output) == before


def test_resume_refuses_another_teacher_of_the_same_name(small, tmp_path, capsys):
    output, weights = tmp_path / "run", tmp_path / "teacher"
    shutil.copytree(small[0] / "teacher", weights)
    assert run("distill", "--output", output, "--teacher.weights", weights, *small[1]) == 0
    (output / "student" / "model.json").unlink()  # so that there is something left to do
    tensors = load_file(weights / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, weights / "model.safetensors")
    capsys.readouterr()
    before = remember(output)
    assert run("distill", "--output", output, "--resume") == 2
    assert "--resume: teacher.weights differs" in capsys.readouterr().err
    assert remember(output) == before


def test_an_evaluation_is_kept_and_not_made_again(small, tmp_path):
    arguments = ("evaluate", "--output", tmp_path, "--teacher.weights", small[0] / "teacher", *small[1])
    assert run(*arguments) == 0
    before = remember(tmp_path)
    assert run(*arguments) == 2
    assert run(*arguments, "--resume") == 0
    after = remember(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {"report.html", "report.md"}


def test_a_run_of_an_older_version_is_resumed_and_then_knows_its_data(small, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(small[0], output)
    recorded = (output / "inputs.json").read_bytes()
    (output / "inputs.json").unlink()
    assert run("run", "--output", output, "--resume") == 0
    assert (output / "inputs.json").read_bytes() == recorded


def test_a_run_of_an_older_version_does_not_distil_from_a_teacher_of_other_classes(tmp_path, capsys):
    output, root = tmp_path / "run", tmp_path / "data"
    assert run("teacher", "--output", output, *image_folder(root), *SMALL) == 0
    (output / "inputs.json").unlink()
    for split in ("train", "val"):
        shutil.copytree(root / split / "dark", root / split / "other")
    capsys.readouterr()
    assert run("run", "--output", output, "--resume") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "the run's teacher" in message
    assert "is a network for 2 classes" in message
    assert not (output / "student").exists()


def test_only_the_settings_of_stages_that_run_are_checked(small, tmp_path, capsys):
    output, settings = small
    weights = ("--teacher.weights", output / "teacher")
    wrong = {
        stage: [
            *(f"--{stage}.batch_size", "500", f"--{stage}.arch", "none", f"--{stage}.epochs", "0"),
            *(f"--{stage}.loss.backend", "cuda", f"--{stage}.loss.{temperature}", "-1"),
        ]
        for stage, temperature in (("teacher", "temperature"), ("student", "kd.temperature"))
    }
    assert run("teacher", *settings, *wrong["student"], "--output", tmp_path / "teacher") == 0
    assert run("distill", *settings, *weights, *wrong["teacher"], "--output", tmp_path / "distilled") == 0
    assert run("run", *settings, *weights, *wrong["teacher"], "--output", tmp_path / "given") == 0
    assert run("evaluate", *settings, *weights, *wrong["teacher"], *wrong["student"]) == 0
    capsys.readouterr()
    for setting in ("batch_size", "arch", "epochs", "loss.kd.temperature"):
        value = wrong["student"][wrong["student"].index(f"--student.{setting}") + 1]
        for command in ("run", "distill"):
            assert run(command, *settings, *weights, f"--student.{setting}", value, "--output", tmp_path / "no") == 2
            assert f"student.{setting}" in capsys.readouterr().err
    assert run("evaluate", *settings, *weights, "--seed", "-1") == 2
    assert run("teacher", *settings, "--checkpoint_every", "-1") == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_any_output_encoding(small, monkeypatch, encoding):
    def streams():
        pair = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", pair[0])
        monkeypatch.setattr(sys, "stderr", pair[1])
        return pair

    def printed(stream):
        stream.flush()
        return stream.buffer.getvalue()

    for arguments, expected in (
        (["run", "--help"], b"exit codes"),
        (["report", "--output", small[0]], b"convnet-small distilled from"),
        (["doctor"], b"torch"),
    ):
        out, err = streams()
        assert run(*arguments) == 0
        assert expected in printed(out)
        assert printed(err) == b""
    for name, shown in (("λ/é", ("λ/é").encode(encoding, "backslashreplace")), ("\udce9", b"\\udce9")):
        out, err = streams()
        assert run("report", "--output", name) == 2
        assert printed(err).startswith(b"icckd: error: " + shown)


def test_settings_are_read_as_utf_8_whatever_the_locale(tmp_path):
    (tmp_path / "c.yaml").write_text("# λ\nseed: -1\n", encoding="utf-8")
    locale = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    _, err = process("run", "--config", tmp_path / "c.yaml", env=locale).communicate()
    assert err == "icckd: error: seed is -1; it should be in [0, 2^63)\n"


def test_a_reader_who_leaves_stops_nothing(small, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    settings = [*small[1], "--output", tmp_path / "run"]
    assert process("run", *settings, stdout=writing, stderr=writing).wait() == 0
    assert_same_models(tmp_path / "run", small[0])
    assert {"summary.json", "report.html"} <= set(contents(tmp_path / "run"))
    for command in (["doctor"], ["report", "--output", small[0]], ["run", "--help"]):
        started = process(*command, stdout=writing)
        _, err = started.communicate()
        assert (started.returncode, err) == (0, "")
    assert process("run", "--seed", "-1", stdout=writing, stderr=writing).wait() == 2
    os.close(writing)


def test_no_standard_output_at_all(small):
    def close():
        os.close(1)

    started = process("report", "--output", small[0], stdout=None, preexec_fn=close)
    _, err = started.communicate()
    assert (started.returncode, err) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_told_once():
    with open("/dev/full", "w") as full:
        started = process("doctor", stdout=full)
        _, err = started.communicate()
    assert (started.returncode, err) == (2, "icckd: error: [Errno 28] No space left on device\n")


def test_a_standard_error_that_cannot_be_written_changes_no_exit_code():
    with open("/dev/full", "w") as full:
        started = process("doctor", "--seed", "x", stderr=full)
        started.communicate()
    assert started.returncode == 2


class Hostile:
    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_a_hostile_checkpoint_is_exit_2_and_runs_nothing(tmp_path, capsys):
    output, marker = tmp_path / "run", tmp_path / "ran"
    assert run("teacher", "--output", output, *SHORT) == 0
    (output / "teacher" / "checkpoint" / "state.pt").write_bytes(pickle.dumps(Hostile(marker)))
    capsys.readouterr()
    assert run("teacher", "--output", output, "--resume") == 2
    assert "state.pt" in error_line(capsys)
    assert not marker.exists()


def test_a_hostile_cifar_batch_is_exit_2_and_runs_nothing(tmp_path, capsys):
    root, marker = tmp_path / "cifar-10-batches-py", tmp_path / "ran"
    root.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (root / name).write_bytes(pickle.dumps({b"data": Hostile(marker)}))
    assert run("run", "--data.name", "cifar10", "--data.root", tmp_path, "--output", tmp_path / "out") == 2
    error_line(capsys)
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_resume_ends_in_the_same_bits(finished, tmp_path, number, code):
    output = tmp_path / "run"
    started = process("run", "--output", output, *SHORT)
    checkpoint = output / "teacher" / "checkpoint" / "state.pt"
    while not checkpoint.exists() and started.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    started.send_signal(number)
    _, err = started.communicate(timeout=120)
    assert started.returncode == code, err
    assert "Traceback" not in err
    assert run("run", "--output", output, "--resume") == 0
    assert_same_models(output, finished)


def assert_same_models(run_a, run_b):
    for stage in ("teacher", "student"):
        first, second = (load_file(p / stage / "model.safetensors") for p in (run_a, run_b))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    histories = []
    for path in (run_a, run_b):
        records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        histories.append([{k: v for k, v in record.items() if k != "seconds"} for record in records])
    assert histories[0] == histories[1]


def kill_and_resume(output, reference, settings, kills):
    """Kill a run `kills` times at random moments, its start included, and let it finish."""
    seed = random.randrange(10**6)
    print(f"moments of the kills: seed {seed}")
    chance = random.Random(seed)
    for _ in range(kills):
        started = process("run", "--output", output, "--resume", *settings)
        time.sleep(chance.uniform(2.0, 6.0))
        started.send_signal(signal.SIGKILL)
        started.communicate()
    final = process("run", "--output", output, "--resume", *settings)
    _, err = final.communicate(timeout=600)
    assert final.returncode == 0, err
    assert_same_models(output, reference)
    assert not list(output.rglob("*.tmp"))


def test_killed_and_resumed_ends_in_the_same_bits(finished, tmp_path):
    kill_and_resume(tmp_path / "run", finished, [*SHORT, "--checkpoint_every", "200"], kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("positive", ["second-view", "second-view-detached", "previous-epoch"])
def test_killed_a_dozen_times_and_resumed_ends_in_the_same_bits(tmp_path, positive):
    settings = [
        *("--teacher.epochs", "60", "--student.epochs", "60", "--checkpoint_every", "5"),
        *("--teacher.memory.capacity", "16", "--teacher.memory.dtype", "float8", "--teacher.memory.average", "0.99"),
        *("--teacher.positive", positive),
    ]
    assert run("run", "--output", tmp_path / "whole", *settings) == 0
    kill_and_resume(tmp_path / "run", tmp_path / "whole", settings, kills=12)


def test_config_yaml_is_plain_yaml(finished):
    assert yaml.safe_load((finished / "config.yaml").read_text())["data"]["name"] == "digits"
