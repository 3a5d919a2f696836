"""The command line as a user meets it: files, exit codes, one clear line for what is wrong."""

import gzip
import json
import os
import pickle
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import fields, is_dataclass

import pytest
import torch
import yaml
from safetensors.torch import load_file

from icckd.cli import main
from icckd.settings import Settings

SHORT = [
    *("--teacher.arch", "convnet-small", "--teacher.epochs", "2", "--teacher.warmup_epochs", "0.5"),
    *("--student.epochs", "1", "--student.warmup_epochs", "0.5"),
]


def run(*arguments):
    """The command in this process; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def process(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "icckd", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def error_line(capsys):
    """What was printed on standard error, which must be one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("icckd: error: ")
    return lines[0]


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


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
        *("expected_calibration_error", "per_class_accuracy", "seconds"),
    }
    assert keys <= summary["teacher"].keys()
    assert keys | {"method"} <= summary["student"].keys()
    assert {"torch", "python", "device"} <= summary["environment"].keys()
    assert len(summary["teacher"]["per_class_accuracy"]) == 10
    assert summary["teacher"]["distance_ratio"] == pytest.approx(
        summary["teacher"]["intra_class_distance"] / summary["teacher"]["inter_class_distance"]
    )


def test_metrics_have_a_line_per_epoch_and_the_last_is_the_summary(finished):
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["epoch"]) for r in records] == [("teacher", 1), ("teacher", 2), ("student", 1)]
    assert {"train_loss", "train_cross_entropy", "train_intra_class", "train_active_fraction"} <= records[0].keys()
    assert {"train_loss", "train_cross_entropy", "train_kd", "learning_rate", "seconds"} <= records[2].keys()
    summary = json.loads((finished / "summary.json").read_text())
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


def test_doctor_names_every_backend(capsys):
    assert run("doctor") == 0
    out = capsys.readouterr().out
    for word in ("torch", "reference", "cuda", "triton", "convnet-small"):
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
        (["run", "--teacher.loss.backend", "cuda"], "teacher.loss.backend"),
        (["distill"], "--teacher.weights"),
        (["evaluate"], "--teacher.weights"),
        (["distill", "--teacher.weights", "/no/such/folder"], "/no/such/folder"),
        (["report"], "--output"),
        (["run", "--resume"], "--output"),
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
def test_killed_a_dozen_times_and_resumed_ends_in_the_same_bits(tmp_path):
    settings = ["--teacher.epochs", "60", "--student.epochs", "60", "--checkpoint_every", "5", "--teacher.memory", "16"]
    assert run("run", "--output", tmp_path / "whole", *settings) == 0
    kill_and_resume(tmp_path / "run", tmp_path / "whole", settings, kills=12)


def test_config_yaml_is_plain_yaml(finished):
    assert yaml.safe_load((finished / "config.yaml").read_text())["data"]["name"] == "digits"
