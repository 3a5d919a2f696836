"""Which backend serves which tensors, and what is said where one cannot."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from icckd import BackendUnavailable, backends
from icckd.backends.problem import IntraClassProblem
from icckd.cli.doctor import diagnose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def hopper(monkeypatch):
    """A machine with an H100 on which every backend of a GPU can run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends, "architecture", lambda device: "sm_90")
    monkeypatch.setattr(backends, "why_not", lambda *_: None)
    return monkeypatch


def test_auto_takes_triton_until_a_run_is_recorded(hopper):
    hopper.setattr(backends, "PROVEN", {"sm_80": {"intra_class": "cuda"}})
    backend, reason = backends.automatic(CUDA, torch.bfloat16, "intra_class")
    assert backend == "triton"
    assert "no run on sm_90 is recorded" in reason


def test_auto_takes_what_the_recorded_run_proved_for_this_family(hopper):
    hopper.setattr(backends, "PROVEN", {"sm_90": {"intra_class": "cuda"}})
    assert backends.automatic(CUDA, torch.bfloat16, "intra_class").backend == "cuda"
    assert backends.automatic(CUDA, torch.bfloat16, "kd_kl").backend == "triton"


def test_auto_falls_back_to_pytorch_and_says_why(monkeypatch):
    monkeypatch.setattr(backends, "why_unavailable", lambda backend: f"{backend} is not built")
    for device, wanted in ((CPU, "cpu"), (CUDA, "triton")):
        backend, reason = backends.automatic(device, torch.float32, "intra_class")
        assert backend == "reference"
        assert f"{wanted} is not built" in reason


def test_double_precision_is_for_the_reference_backend():
    assert backends.select("auto", CPU, torch.float64, "intra_class") == "reference"


def test_an_unknown_backend_is_named_beside_the_known_ones():
    with pytest.raises(ValueError, match="backend is 'fast'; it should be 'auto' or one of 'reference', 'cpu'"):
        backends.select("fast", CPU, torch.float32, "intra_class")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_cuda_backend_says_what_is_missing():
    with pytest.raises(BackendUnavailable, match=r"backend 'cuda' cannot run here: .*CUDA"):
        backends.select("cuda", CUDA, torch.float32, "intra_class")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("interpret", "expected"), [("0", "no CUDA or ROCm device"), ("1", "available, in its interpreter")]
)
def test_triton_runs_on_the_cpu_in_its_interpreter_only(interpret, expected):
    pytest.importorskip("triton")
    result = subprocess.run(
        [sys.executable, "-m", "icckd", "doctor"],
        env={**os.environ, "TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("  triton "))
    assert expected in line


def test_triton_kernels_are_launched_on_their_tensors_device(monkeypatch):
    entered = []

    @contextmanager
    def device_of(x):
        entered.append(x)
        yield

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    tensor = torch.zeros(1)
    operator = backends.module("triton").on_device_of_tensors(lambda *arguments: (len(entered), *arguments))
    assert operator(tensor, 2) == (1, tensor, 2)
    problem = IntraClassProblem(tensor, *[torch.empty(0)] * 6, mean=True, normalize=True, num_classes=None)
    assert operator(problem, 3)[0] == 2
    assert all(x is tensor for x in entered)


def test_without_triton_its_backends_are_missing_and_nothing_else():
    code = "import sys; sys.modules['triton'] = None; from icckd.cli.doctor import diagnose; print(diagnose())"
    report = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("cuda", "triton"):
        assert f"  {name:<12}not available: it needs Triton, which cannot be imported" in report
    assert "  cuda                reference: triton cannot run" in report


def test_a_lost_link_to_the_kernels_is_said_so():
    code = "import sys; sys.modules['icckd.kernels'] = None; from icckd.cli.doctor import diagnose; print(diagnose())"
    report = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert report.count(": icckd/kernels should be a link to ../kernels, which this copy of the tree has lost") == 3


def test_doctor_says_what_auto_takes_and_why(hopper):
    hopper.setattr(torch.cuda, "device_count", lambda: 0)
    hopper.setattr(backends, "PROVEN", {"sm_90": {"intra_class": "cuda"}})
    report = diagnose()
    assert "cuda intra_class    cuda: the fastest in the run recorded on sm_90" in report
    assert "cuda relational     triton: no run on sm_90 is recorded yet" in report
