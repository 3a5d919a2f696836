"""The scripts of examples/: the one for several processes whole, the others as far as their packages are there."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.processes import needs_gloo

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


@needs_gloo
def test_two_processes_compute_what_one_does():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*command, str(ROOT / "examples/ddp_teacher.py"), "--epochs", "4", "--weight", "0.1"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    said = re.search(
        r"loss of 2 processes ([\d.]+), of one ([\d.]+); .* differ by (\S+) .* (\d+)% are anchors", run.stdout
    )
    together, alone, difference, anchors = map(float, said.groups())
    assert together == pytest.approx(alone, abs=2e-5)
    assert difference < 1e-4
    assert anchors > 30
    accuracies = [float(value) for value in re.findall(r"test accuracy ([\d.]+)%", run.stdout)]
    assert len(accuracies) == 4
    assert accuracies[-1] > 80


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_says_what_it_needs_and_how_it_is_run(script):
    source = script.read_text()
    assert len(source.splitlines()) < 150
    assert f"examples/{script.name}\n" in ast.get_docstring(ast.parse(source)) + "\n"
    assert f"| [{script.name}]({script.name}) |" in (ROOT / "examples/README.md").read_text()


def test_the_network_of_timm_has_the_classifiers_input_as_embedding():
    try:
        import timm  # noqa: F401
    except Exception as error:  # Beside a torchvision that does not fit torch, it is no ImportError.
        pytest.skip(f"timm cannot be imported: {error}")
    script = runpy.run_path(str(ROOT / "examples/timm_teacher.py"))
    images, labels = next(iter(script["loader"](training=True, views=2)))
    network = script["Network"]("test_resnet").eval()
    features, logits = network(images)
    assert len(images) == len(labels) == 2 * 64
    assert torch.equal(labels[:64], labels[64:])
    assert features.shape[1] == network.network.head_hidden_size
    torch.testing.assert_close(logits, network.network(images))
    loss = script["teachers_loss"](network, 0.5)(images, labels)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_lightnings_modules_log_and_learn(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_distillation.py", "--epochs", "2", "--precision", "bf16-mixed"])
    runpy.run_path(str(ROOT / "examples/lightning_distillation.py"), run_name="__main__")
    assert len(list(tmp_path.rglob("*.ckpt"))) == 2
