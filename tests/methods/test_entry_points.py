"""Methods of other packages: the file that CONTRIBUTING.md shows, found through an entry point."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from safetensors.torch import load_file

from tests.cli.test_commands import SMALL, image_folder

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
TEACHER = '''
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from icckd.methods import MethodSettings, TeacherMethod, register

@dataclass
class SmoothSettings(MethodSettings):
    """Smoothed labels.

    Args:
        share: Share that is spread over all classes.
    """
    share: float = 0.1

@register
class Smooth(TeacherMethod):
    name = "smooth-labels"
    settings: SmoothSettings

    def __init__(self, settings, network, backend):
        super().__init__(settings, network, backend)
        self.bias = nn.Parameter(torch.zeros(network.classes))

    def forward(self, outputs, samples):
        loss = cross_entropy(outputs.logits + self.bias, samples.labels, label_smoothing=self.settings.share)
        return {"loss": loss, "twice": 2 * loss}
'''


def example():
    """The first Python file of the section on methods."""
    section = CONTRIBUTING.read_text(encoding="utf-8").split("## Add a method")[1]
    return dedent(re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder that holds three modules, and what an installed package says of them."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "their_logits.py").write_text(example(), encoding="utf-8")
    (folder / "their_teacher.py").write_text(TEACHER, encoding="utf-8")
    (folder / "their_broken.py").write_text("import something_that_is_not_there", encoding="utf-8")
    about = folder / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    names = "logits = their_logits\nsmooth-labels = their_teacher\nbroken = their_broken\n"
    (about / "entry_points.txt").write_text(f"[icckd.methods]\n{names}")
    return folder


SCRIPT = """
import json, sys
from icckd.cli import main
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as stopped:
        print(f"left with {stopped.code}")
"""


def icckd(package, *commands):
    """What a process says to these commands, one after another: importing everything is most of their time."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(CONTRIBUTING.parent)])}
    arguments = json.dumps([[str(argument) for argument in command] for command in commands])
    process = [sys.executable, "-c", SCRIPT, arguments]
    done = subprocess.run(process, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    return done.stdout


def test_both_networks_are_trained_by_methods_from_outside(package, tmp_path):
    settings = image_folder(tmp_path / "images")
    ours = ["--teacher.loss.method", "smooth-labels", "--teacher.loss.smooth_labels.share", "0.2"]
    ours += ["--student.loss.method", "logits+kd", "--student.loss.logits.scale", "2"]
    told = icckd(package, ["run", *settings, *SMALL, *ours, "--output", tmp_path / "run"])
    assert "left with 0" in told, told
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["student"]["method"] == "logits+kd"
    assert summary["student"]["settings"]["logits"] == {"weight": 1.0, "warmup_epochs": 0, "scale": 2.0}
    teacher, student = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert teacher["train_twice"] == pytest.approx(2 * teacher["train_loss"])
    assert student["train_loss"] == pytest.approx(
        student["train_cross_entropy"] + student["train_logits"] + student["train_kd"], rel=1e-5
    )
    assert not [name for name in load_file(tmp_path / "run" / "teacher" / "model.safetensors") if name == "bias"]


def test_help_tells_of_them_and_what_cannot_be_imported_is_told_where_it_is_asked_for(package):
    told = icckd(package, ["run", "--help"], ["run", "--student.loss.method", "broken"], ["doctor"])
    assert [line for line in told.splitlines() if line.startswith("left with")] == [f"left with {n}" for n in (0, 2, 0)]
    assert "--student.loss.logits.scale" in told
    assert "What the teacher's logits are multiplied by first" in " ".join(told.split())
    (refused,) = [line for line in told.splitlines() if "student.loss.method is 'broken'" in line]
    assert "something_that_is_not_there" in refused
    assert "\n  the entry point broken = their_broken cannot be imported" in told
