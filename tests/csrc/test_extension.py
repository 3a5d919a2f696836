"""The extension as a build artefact: what it is linked to, registers and refuses, and which instruction set it uses."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from icckd.backends import native
from icckd.ops import bank, cross_entropy, distillation, intra_class, rest_divergence

ROOT = Path(__file__).parents[2]
needs_extension = pytest.mark.skipif(native.why_unavailable() is not None, reason="icckd._C is not built")


def python(*arguments, **environment):
    """A Python process in the repository, with its output."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_extension
def test_file_is_for_every_python_and_torch():
    import icckd._C

    assert icckd._C.__file__.endswith("_C.abi3.so")
    if shutil.which("nm") is None:
        pytest.skip("no nm to look into the file with")
    command = ["nm", "-D", "--undefined-only", icckd._C.__file__]
    needed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    unstable = [name for name in needed if re.match(r"_ZN?K?(2at|3c10|5torch|5caffe)", name) or name.startswith("_Py")]
    assert unstable == []


@needs_extension
@pytest.mark.parametrize("module", [intra_class, cross_entropy, distillation, bank, rest_divergence])
def test_schemas_are_those_of_the_public_operators(module):
    operators = [value for value in vars(module).values() if isinstance(value, torch.library.CustomOpDef)]
    assert operators
    for operator in operators:
        namespace, name = operator._qualname.split("::")
        public, schema = (getattr(getattr(torch.ops, ns), name).default._schema for ns in (namespace, "icckd_native"))
        *arguments, backend = [(argument.name, str(argument.type)) for argument in public.arguments]
        assert backend[0] == "backend"
        # Weights come ready made, for a mean, too.
        weight, mean = ("weight", "Tensor"), ("mean", "bool")
        optional = ("weight", "Optional[Tensor]")
        replaced = {optional: [weight], mean: [] if optional in arguments else [weight]}
        if name == "kd_kl_sum":
            replaced[mean] = [("scale", "float")]
        arguments = [taken for argument in arguments for taken in replaced.get(argument, [argument])]
        assert [(argument.name, str(argument.type)) for argument in schema.arguments] == arguments
        assert [str(result.type) for result in schema.returns] == [str(result.type) for result in public.returns]


@needs_extension
def test_backend_functions_are_the_operators():
    assert native.kd_kl_sum is torch.ops.icckd_native.kd_kl_sum.default
    with pytest.raises(AttributeError, match="no operator 'nonsense'"):
        _ = native.nonsense


def supported_instruction_sets():
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    needed = {"avx2": " avx2 ", "avx512": " avx512vl ", "avx512_bf16": " avx512_bf16 "}
    return ["baseline", *[name for name, flag in needed.items() if flag in flags]]


@needs_extension
def test_best_instruction_set_is_used():
    result = python("-c", "from icckd.backends import native; print(native.instruction_set())", ICCKD_CPU_CAPABILITY="")
    assert result.stdout.strip() == supported_instruction_sets()[-1], result.stderr


@needs_extension
@pytest.mark.parametrize("instruction_set", supported_instruction_sets())
def test_kernels_are_right_on_every_instruction_set(instruction_set):
    result = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/csrc/test_intra_class_kernels.py",
        "tests/csrc/test_bank_kernels.py", "tests/csrc/test_hierarchical_kernels.py",
        ICCKD_CPU_CAPABILITY=instruction_set,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


@needs_extension
def test_unknown_instruction_set_is_refused():
    result = python("-c", "from icckd.backends import native; native.instruction_set()", ICCKD_CPU_CAPABILITY="sse9")
    assert result.returncode != 0
    assert "ICCKD_CPU_CAPABILITY is 'sse9'; it should be baseline, avx2, avx512 or avx512_bf16" in result.stderr


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"ICCKD_NO_EXTENSION": "1"}, "ICCKD_NO_EXTENSION is set"), ({"CXX": "no-such-compiler"}, "no C++ compiler")],
)
def test_installation_without_a_compiler_says_so_and_goes_on(environment, reason):
    result = python("setup.py", "--name", **environment)
    assert result.returncode == 0
    assert result.stdout.strip().endswith("icckd")
    assert (
        f"installing without the C++ extension, because {'' if 'NO' in reason else 'there is '}{reason}"
        in result.stderr
    )


def with_old_setuptools(*arguments):
    """setup.py by a setuptools that cannot read pyproject.toml."""
    code = f"""
import runpy, sys, setuptools
def refuse(self, filenames=None, ignore_option_errors=False):
    if not ignore_option_errors:
        raise ValueError("project.license must be valid exactly by one definition")
setuptools.__version__, setuptools.Distribution.parse_config_files = "68.1.2", refuse
sys.argv = ["setup.py", "-q", *{list(map(str, arguments))}]
runpy.run_path("setup.py", run_name="__main__")
"""
    return python("-c", code, ICCKD_NO_EXTENSION="1", ICCKD_NO_CUDA="1")


def test_an_old_setuptools_builds(tmp_path):
    result = with_old_setuptools("build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path)
    assert result.returncode == 0, result.stderr


def test_an_old_setuptools_does_not_install():
    result = with_old_setuptools("--name")
    assert result.returncode != 0
    assert "installing needs setuptools 77 or newer, and this is 68.1.2" in result.stderr


def wrong_calls():
    """Calls of intra_class_sum that the layers above would never make, each with what the message says."""
    good = {
        "anchor": torch.zeros(4, 3),
        "positive": torch.zeros(4, 3),
        "labels": torch.zeros(4, dtype=torch.long),
        "weight": torch.ones(4),
        "memory": torch.zeros(2, 3),
        "memory_labels": torch.zeros(2, dtype=torch.long),
        "temperature": torch.tensor(0.1),
    }
    wrong = {
        "anchor has no columns": ({"anchor": torch.zeros(4)}, "anchor should have 2 dimensions"),
        "anchor is float64": ({k: good[k].double() for k in ("anchor", "positive")}, "anchor should be float32"),
        "positive is short": ({"positive": torch.zeros(3, 3)}, "positive has size 3 in dimension 0; it should have 4"),
        "positive is of another dtype": ({"positive": torch.zeros(4, 3).half()}, "positive has the wrong dtype"),
        "labels are int32": ({"labels": torch.zeros(4, dtype=torch.int32)}, "labels has the wrong dtype"),
        "weight is float64": ({"weight": torch.ones(4).double()}, "weight has the wrong dtype"),
        "memory is narrow": ({"memory": torch.zeros(2, 2)}, "memory has size 2 in dimension 1; it should have 3"),
        "memory has no labels": ({"memory_labels": None}, "memory and memory_labels belong together"),
        "memory labels are a matrix": ({"memory_labels": torch.zeros(2, 1).long()}, "memory_labels has 2 dimensions"),
        "temperature is a vector": ({"temperature": torch.ones(1)}, "temperature has 1 dimensions"),
    }
    return [pytest.param({**good, **changes}, message, id=name) for name, (changes, message) in wrong.items()]


@needs_extension
@pytest.mark.parametrize(("arguments", "message"), wrong_calls())
def test_wrong_tensors_raise_instead_of_crashing(arguments, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch.ops.icckd_native.intra_class_sum(*arguments.values(), True, None, True, True, True)


@needs_extension
def test_label_beyond_num_classes_is_refused():
    x, labels = torch.zeros(2, 3), torch.tensor([0, 7])
    with pytest.raises(RuntimeError, match="num_classes is 7, but labels reach 7"):
        torch.ops.icckd_native.intra_class_rows(x, x, labels, torch.ones(2), None, None, torch.tensor(0.1), True, 7)
