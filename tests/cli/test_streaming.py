"""The field's protocol for ImageNet on a few files, streamed: stopped, resumed, and what is wrong with a file."""

import os
import signal

import numpy as np
import pytest
import yaml
from PIL import Image

from icckd.data import Batches
from icckd.experiment import experiment
from tests.cli.test_commands import error_line, run

SETTINGS = [
    *("--preset", "paper", "--data.name", "image-folder", "--data.streaming", "true", "--data.workers", "2"),
    *("--data.image_size", "16", "--teacher.arch", "convnet-small", "--student.arch", "convnet-small"),
    *("--teacher.epochs", "2", "--student.epochs", "1", "--teacher.batch_size", "8", "--student.batch_size", "8"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of three classes, of many sizes, in two formats."""
    root, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(7)
    for part, count in (("train", 10), ("val", 4)):
        for label, name in enumerate(("ant", "bee", "cow")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(60 * label, 60 * label + 90, (*random.integers(17, 50, 2), 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.{('jpg', 'png')[number % 2]}")
    return root


def weights(output):
    return [(output / stage / "model.safetensors").read_bytes() for stage in ("teacher", "student")]


def test_the_papers_protocol_stopped_and_resumed_ends_in_the_same_bits(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "write_report", lambda folder: None)
    arguments = [*SETTINGS, "--data.root", folder]
    assert run("run", *arguments, "--output", tmp_path / "whole") == 0
    settings = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())
    assert settings["data"]["augmentation"]["resized_crop"] == [0.08, 1.0]
    assert settings["data"]["mean"] == [0.485, 0.456, 0.406]
    epoch, first_steps = Batches.epoch, []

    def stopping(self, number, first_step=0):
        for batch in epoch(self, number, first_step):
            first_steps.append(first_step)
            if len(first_steps) == 7:  # In the teacher's second epoch.
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Batches, "epoch", stopping)
    assert run("run", *arguments, "--output", tmp_path / "stopped") == 143
    assert run("run", *arguments, "--output", tmp_path / "stopped", "--resume") == 0
    assert max(first_steps) > 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_a_file_that_cannot_be_read_is_exit_2_and_named(folder, tmp_path, capsys):
    bad = folder / "train" / "bee" / "4.jpg"
    content = bad.read_bytes()
    bad.write_bytes(content[:200])
    assert run("run", *SETTINGS, "--data.root", folder, "--output", tmp_path / "run") == 2
    bad.write_bytes(content)
    assert f"icckd: error: {bad} is " in error_line(capsys)


def test_only_folders_of_images_are_streamed(capsys):
    assert run("run", "--data.streaming", "true") == 2
    assert "data.streaming is true; it should be false for digits" in error_line(capsys)
