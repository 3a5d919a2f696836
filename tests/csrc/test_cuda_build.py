"""The build of the CUDA library: when, for what, and what becomes of a failure; and the library as a build artefact."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from icckd.backends.cuda import LIBRARY
from icckd.kernels.layout import Layout

ROOT = Path(__file__).parents[2]
OTHER = ("ICCKD_CUDA", "ICCKD_NO_CUDA", "ICCKD_DEBUG", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME")
NVCC = """#!/bin/sh
echo "$@" >> {log}
{action}
while [ $# -gt 0 ]; do
  case $1 in -o) touch "$2";; -MF) touch "$2";; esac
  shift
done
"""


@pytest.fixture
def build(tmp_path):
    """Runs setup.py's build_ext with a stand-in for nvcc; into build/cuda-debug and a folder of its own."""
    if sys.platform != "linux":
        pytest.skip("the library is for Linux")

    def run(action="", with_cuda=False, **environment):
        compiler = tmp_path / "cuda" / "bin" / "nvcc"
        compiler.parent.mkdir(parents=True)
        compiler.write_text(NVCC.format(log=tmp_path / "log", action=action))
        compiler.chmod(0o755)
        python_path = tmp_path / "site"
        python_path.mkdir()
        if with_cuda:
            (python_path / "sitecustomize.py").write_text("import torch\ntorch.version.cuda = '13.0'\n")
        clean = {name: value for name, value in os.environ.items() if name not in OTHER}
        result = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path / "out", "--build-temp", tmp_path],
            cwd=ROOT,
            env={**clean, "CUDA_HOME": str(tmp_path / "cuda"), "PYTHONPATH": str(python_path), "ICCKD_DEBUG": "1"}
            | {"ICCKD_NO_EXTENSION": "1"}
            | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
        return result, log, (tmp_path / "out" / "icckd" / "_cuda.so").exists()

    return run


def architectures(log):
    return set(re.findall(r"-gencode=(\S+)", log))


def test_builds_for_three_architectures_where_it_is_asked_for(build):
    result, log, built = build(ICCKD_CUDA="1")
    assert result.returncode == 0, result.stderr
    assert built
    assert architectures(log) == {
        "arch=compute_80,code=sm_80",
        "arch=compute_90a,code=sm_90a",
        "arch=compute_100a,code=sm_100a",
        "arch=compute_100,code=compute_100",
    }
    sources = {path.name for path in (ROOT / "csrc" / "cuda").glob("*.cu")}
    assert {Path(name).name for name in re.findall(r"-c (\S+)", log)} == sources
    assert "-DICCKD_DEBUG=1" in log


def test_builds_where_pytorch_has_cuda(build):
    result, log, built = build(with_cuda=True, TORCH_CUDA_ARCH_LIST="7.5, 8.9+PTX")
    assert result.returncode == 0, result.stderr
    assert built
    assert architectures(log) == {
        "arch=compute_75,code=sm_75",
        "arch=compute_89,code=sm_89",
        "arch=compute_89,code=compute_89",
    }


@pytest.mark.parametrize(
    ("environment", "with_cuda", "reason"),
    [
        ({}, False, "this PyTorch is built without CUDA"),
        ({"ICCKD_NO_CUDA": "1", "ICCKD_CUDA": "1"}, True, "ICCKD_NO_CUDA is set"),
        ({"CUDA_HOME": "/nowhere", "PATH": "/nowhere"}, True, "there is no nvcc"),
    ],
)
def test_says_why_it_does_not_build(build, environment, with_cuda, reason):
    result, log, built = build(with_cuda=with_cuda, **environment)
    assert result.returncode == 0
    assert f"installing without the CUDA library, because {reason}" in result.stderr
    assert not log
    assert not built


def test_a_failure_stops_nobody_who_did_not_ask(build):
    result, log, built = build("echo 'nvcc is broken'; exit 1", with_cuda=True)
    assert result.returncode == 0
    assert log
    assert not built
    assert "nvcc is broken" in result.stdout
    assert "icckd._cuda does not compile" in result.stderr


def test_a_failure_stops_who_asked(build):
    result, *_ = build("exit 1", ICCKD_CUDA="1")
    assert result.returncode != 0
    assert "icckd._cuda does not compile" in result.stderr


def test_unknown_architectures_are_refused(build):
    result, log, _ = build(ICCKD_CUDA="1", TORCH_CUDA_ARCH_LIST="8.0 Hopper")
    assert result.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST holds 'Hopper'; it should hold versions such as 9.0a or 10.0+PTX" in result.stderr
    assert not log


needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="icckd/_cuda.so is not built; `make cuda` builds it")


@needs_library
def test_library_needs_the_stable_abi_only():
    if shutil.which("nm") is None:
        pytest.skip("no nm to look into the file with")
    command = ["nm", "-D", "--undefined-only", str(LIBRARY)]
    needed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    unstable = [name for name in needed if re.match(r"_ZN?K?(2at|3c10|5torch|5caffe)|_?Py|cuda[A-Z]", name)]
    assert unstable == []


@needs_library
def test_library_registers_its_operators(tmp_path):
    """Loads it without CUDA, with a stand-in for what libtorch_cuda has."""
    if shutil.which("g++") is None:
        pytest.skip("no compiler for the stand-in")
    source, stand_in = tmp_path / "stand_in.cpp", tmp_path / "stand_in.so"
    source.write_text('extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n')
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", stand_in], check=True)
    script = f"""
import ctypes, torch
ctypes.CDLL({str(stand_in)!r}, mode=ctypes.RTLD_GLOBAL)
torch.ops.load_library({str(LIBRARY)!r})
ops = torch.ops.icckd_cuda
print(*(result.name for result in ops.class_layout.default._schema.returns))
print(*(f"{{a.name}}:{{a.is_write}}" for a in ops.class_memory_push.default._schema.arguments))
print(ops.class_layout_most_classes())
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert output.returncode == 0, output.stderr
    returns, arguments, most = output.stdout.splitlines()
    assert tuple(returns.split()) == Layout._fields
    assert arguments == "slots:True pushed:True features:False labels:False"
    assert int(most) == 12288
