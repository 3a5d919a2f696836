"""A student that is trained without the training images: they are not read, and need not be there."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from icckd.errors import UserError
from icckd.experiment import Experiment, RunFolder, experiment
from icckd.experiment.progress import no_progress
from icckd.models import ModelDescription, build_model, save_model
from icckd.report import write_report
from icckd.settings import settings_from
from tests.cli.test_commands import run as run_command
from tests.data.test_cifar import NAMES, PY_FOLDER, python_files, write_folder

RGAL = {"noise": 5, "width": 4, "synthesis_steps": 2, "images": 16, "capacity": 40, "steps": 3}
GIVEN = {
    **{f"{stage}.{name}": value for stage in ("teacher", "student") for name, value in (
        ("arch", "convnet-small"), ("epochs", 1), ("batch_size", 16), ("warmup_epochs", 0.0))},
    "student.epochs": 2,
    "student.loss.method": "rgal",
    **{f"student.loss.rgal.{name}": value for name, value in RGAL.items()},
    "data.train_fraction": 0.05,
    "device": "cpu",
    "checkpoint_every": 2,
}  # fmt: skip


class StudentSawAnImage(Exception):
    pass


class Untouchable:
    """Stands where images are and can only be counted."""

    def __init__(self, images):
        self.shape = images.shape

    def __len__(self):
        return len(self.shape)

    def __getattr__(self, name):
        raise StudentSawAnImage(name)

    def __getitem__(self, places):
        raise StudentSawAnImage(places)


def made(**changes):
    return Experiment(settings_from(GIVEN | changes, "test"), progress=no_progress)


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr(experiment, "write_report", lambda folder: None)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder of CIFAR-10 without its training files, and a teacher of its classes."""
    root = tmp_path_factory.mktemp("cifar")
    files = python_files("cifar10")
    write_folder(root / PY_FOLDER["cifar10"], {name: files[name] for name in ("test_batch", "batches.meta")})
    torch.manual_seed(0)
    model = build_model("convnet-small", 3, 10, 32)
    save_model(
        root / "teacher",
        model,
        ModelDescription("convnet-small", NAMES["cifar10"], 3, 32, [0.4, 0.45, 0.5], [0.2, 0.25, 0.3]),
    )
    return root


def distill(cifar, output, *more):
    given = ["--data.name", "cifar10", "--data.root", cifar, "--teacher.weights", cifar / "teacher"]
    settings = {**RGAL, "steps": 2, "synthesis_steps": 1}
    for name, value in settings.items():
        given += [f"--student.loss.rgal.{name}", value]
    given += ["--student.loss.method", "rgal", "--student.epochs", 1, "--student.batch_size", 8]
    return run_command("distill", "--output", output, *given, *more)


def test_distillation_does_not_need_the_training_files(cifar, tmp_path):
    assert distill(cifar, tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["data"]["train_images"] == 0
    assert summary["student"]["images_made"] == 16
    model = json.loads((tmp_path / "run" / "student" / "model.json").read_text())
    assert (model["mean"], model["std"]) == ([0.4, 0.45, 0.5], [0.2, 0.25, 0.3])
    assert load_file(tmp_path / "run" / "student" / "findings.safetensors")["images"].shape[1:] == (3, 32, 32)
    write_report(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What the student learned from" in page
    assert "none; of each channel, less the mean" in page
    assert distill(cifar, tmp_path / "run", "--resume") == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--data.validation", "0.2"], "data.validation is 0.2, a part of the training images"),
        (["--student.batch_size", "17"], "student.batch_size is 17, more than student.loss.rgal.images, 16"),
        (["--student.loss.rgal.capacity", "3"], "student.loss.rgal.capacity is 3"),
        (["--student.loss.method", "kd"], "data_batch_1"),
    ],
)
def test_what_cannot_be_done_is_one_line(cifar, tmp_path, capsys, more, said):
    assert distill(cifar, tmp_path / "run", *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("icckd: error: ")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_state_dict_needs_a_mean(cifar, tmp_path, capsys):
    torch.save(build_model("resnet8", 3, 10, 32).state_dict(), tmp_path / "teacher.pth")
    assert distill(cifar, tmp_path / "run", "--teacher.weights", tmp_path / "teacher.pth") == 2
    assert "give data.mean and data.std" in capsys.readouterr().err


def test_in_a_whole_run_the_student_s_stage_reads_none(tmp_path, monkeypatch):
    student = Experiment._student

    def watched(self, folder, teacher):
        self.data = replace(self.data, train_images=Untouchable(self.data.train_images))
        student(self, folder, teacher)

    monkeypatch.setattr(Experiment, "_student", watched)
    summary = made(**{"data.labels": "coarse"}).run(RunFolder(tmp_path / "run"))
    assert summary["teacher"]["fine_probe"] >= 0
    assert "fine_probe" not in summary["student"]
    with pytest.raises(StudentSawAnImage):
        made(**{"student.loss.method": "kd"}).run(RunFolder(tmp_path / "other"))


@pytest.mark.parametrize(
    "changes",
    [
        {"data.label_noise": "partial:0.2", "teacher.loss.method": "wsc"},
        {
            "data.sampler": "class-balanced",
            "data.validation": 0.2,
            "data.augmentation.resized_crop": [0.5, 1.0],
            "data.class_augmentation.classes": 1,
            "data.class_augmentation.areas": [0.8],
        },
    ],
)
def test_what_settings_say_of_training_images_concerns_the_teacher(tmp_path, changes):
    summary = made(**{"student.epochs": 1} | changes).run(RunFolder(tmp_path / "run"))
    assert summary["student"]["images_made"] == 16
    assert summary["data"]["train_images"] > 0


def test_signals_are_refused():
    with pytest.raises(UserError, match=r"student\.loss\.method is rgal; it should be one that takes signals"):
        made(**{"data.name": "signals", "teacher.arch": "signal-convnet-small", "student.arch": "signal-convnet-small",
                "data.train_fraction": 1.0})  # fmt: skip
