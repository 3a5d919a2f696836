"""Whole runs by every procedure: those that are stopped and resumed end in the same files and numbers."""

import signal
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from icckd.data import load_data
from icckd.errors import Interrupted
from icckd.experiment import Experiment, RunFolder, experiment
from icckd.experiment.progress import no_progress
from icckd.methods import StudentProcedure
from icckd.models import ModelDescription, build_model, save_model
from icckd.settings import DataSettings, methods_of, settings_from

GIVEN = {
    "data.train_fraction": 0.05,
    "student.arch": "convnet-small",
    "student.batch_size": 16,
    "student.warmup_epochs": 0.0,
    "checkpoint_every": 2,
    "device": "cpu",
}
PROCEDURES = {
    "absld": {
        "student.epochs": 2,
        "student.accumulate": 2,
        "student.loss.absld.steps": 1,
        "evaluation.attack": "pgd",
        "evaluation.steps": 1,
    },
    "rgal": {
        "student.epochs": 2,
        **{f"student.loss.rgal.{name}": value for name, value in
           {"noise": 5, "width": 4, "synthesis_steps": 2, "images": 16, "capacity": 40, "steps": 4}.items()},
    },
    "staged": {"student.epochs": 3, "student.accumulate": 2},
    "pkd": {"federated.clients": 2, "federated.rounds": 3, "student.loss.pkd.expert_rounds": 1},
}  # fmt: skip
# Until the first epoch is stopped; and then, from there, the second.
LOOKS = (3, 7)


class StopsLater:
    """Says that a signal came when it is asked for the `looks` + 1st time."""

    def __init__(self, looks):
        self.looks = looks

    @property
    def received(self):
        self.looks -= 1
        return signal.SIGTERM if self.looks < 0 else None


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    data, folder = load_data(DataSettings()), tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    description = ModelDescription("convnet-small", list(data.classes), 1, 8, list(data.mean), list(data.std))
    save_model(folder, build_model("convnet-small", 1, 10, 8), description)
    return folder


def test_every_procedure_is_run_here():
    assert PROCEDURES.keys() == methods_of(StudentProcedure).keys()


@pytest.mark.parametrize("name", PROCEDURES)
def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_bits_and_numbers(name, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "write_report", lambda folder: None)
    given = {**GIVEN, **PROCEDURES[name], "student.loss.method": name, "teacher.weights": str(teacher)}
    settings = settings_from(given, "test")

    def run(folder, looks=10_000, **how):
        made = Experiment(settings, stop=lambda: nullcontext(StopsLater(looks)), progress=no_progress)
        return made.run(RunFolder(tmp_path / folder), **how)["student"]

    whole = run("whole")
    for looks in LOOKS:
        with pytest.raises(Interrupted):
            run("parts", looks, resume=looks != LOOKS[0])
        assert not (tmp_path / "parts" / "student" / "model.safetensors").exists()
    resumed = run("parts", resume=True)
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    assert whole["method"] == name
    files = [path.name for path in (tmp_path / "whole" / "student").glob("*.safetensors")]
    assert "model.safetensors" in files
    for file in files:
        one, other = ((tmp_path / folder / "student" / file).read_bytes() for folder in ("whole", "parts"))
        assert one == other, file
    kept = load_file(tmp_path / "whole" / "student" / "model.safetensors")
    assert kept.keys() == build_model("convnet-small", 1, 10, 8).state_dict().keys()
