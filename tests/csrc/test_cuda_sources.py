"""What can be told from the CUDA sources without compiling them, and what no emulated test would notice."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
EMULATOR = Path(__file__).parent / "emulator"
SOURCES = sorted([*(CSRC / "cuda").glob("*.h"), *(CSRC / "cuda").glob("*.cu")])
# The files that say what the names of device.h are on a GPU.
MACHINE = {"device.h", "element.h", "swizzle.h", "warpgroup.h"}
# C++ strings that follow each other, as long schemas are written.
SCHEMA = re.compile(r'm\.def\(\s*((?:"[^"]*"\s*)+)\)')


def code_of(path):
    return re.sub(r"//[^\n]*", "", path.read_text())


def schemas_of(*paths):
    """Each operator's schema by its name."""
    found = ["".join(re.findall(r'"([^"]*)"', text)) for path in paths for text in SCHEMA.findall(code_of(path))]
    return {schema.split("(")[0]: schema for schema in found}


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name not in MACHINE], ids=lambda path: path.name)
def test_kernels_know_the_machine_through_device_h_alone(path):
    """What goes around it, the emulator does not see."""
    instruction = r'\basm\b[^"]*"[^"]'  # an empty one only keeps the compiler from reordering
    names = r"__sync|__shfl|__ballot|__shared__|__ld|__st|\batomic[A-Z]\w*|\b(?:thread|block)(?:Idx|Dim)\b"
    assert re.findall(f"{instruction}|{names}", code_of(path)) == []


def test_the_emulator_has_no_more_than_two_architectures_to_tell_apart():
    """The tests run on one with wgmma and on one without."""
    files = [path for path in SOURCES if path.suffix == ".h"] + sorted([*EMULATOR.glob("*.h"), *EMULATOR.glob("*.cpp")])
    used = [text for path in files for text in re.findall(r"ICCKD_EMULATED\s*[^\s)\w]+\s*\w+", code_of(path))]
    assert used == ["ICCKD_EMULATED == 90"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_sums_do_not_depend_on_who_comes_first(path):
    """Atomics are of integers only: sums of floats in any order would not be the same bits on every run."""
    code = code_of(path)
    assert not re.search(r"\b(?:red|atom)\.\w*", code)
    assert set(re.findall(r"\batomic[A-Z]\w*", code)) <= {"atomicAdd"}
    assert re.findall(r"\w+ atomic_add\(([^)]*)\)\s*{", code) == (
        ["int* p, int value"] if path.name == "device.h" else []
    )


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.suffix == ".cu" or p.name == "tensors.h"], ids=lambda p: p.name
)
def test_operators_never_wait_for_the_gpu(path):
    """Nor do they allocate behind the back of PyTorch: either would keep them out of a CUDA graph."""
    assert re.findall(r"\bcuda\w*(?:Synchronize|Malloc|Free|Memcpy)\w*|\bcudaMemset\(|\bitem\(", code_of(path)) == []


@pytest.mark.parametrize("path", [p for p in SOURCES if p.suffix == ".cu"], ids=lambda path: path.name)
def test_kernels_are_bounded_and_take_their_parameters_in_constant_memory(path):
    kernels = re.findall(r"__global__\s+void\s+(\S+).*?\(const (\S+)", code_of(path), flags=re.DOTALL)
    assert kernels
    for bounds, parameters in kernels:
        assert bounds.startswith("__launch_bounds__(")
        assert parameters == "__grid_constant__"


def test_operators_have_the_schemas_of_the_cpu():
    """One Python layer calls both."""
    on_cpu = schemas_of(CSRC / "ops.cpp")
    on_gpu = schemas_of(*SOURCES)
    shared = on_cpu.keys() & on_gpu.keys()
    assert len([name for name in shared if name.startswith(("cross_entropy_margin", "kd_kl"))]) == 6
    assert {name: on_gpu[name] for name in shared} == {name: on_cpu[name] for name in shared}


def test_every_operator_is_implemented():
    for path in (p for p in SOURCES if p.suffix == ".cu"):
        assert set(re.findall(r'm\.impl\("(\w+)"', code_of(path))) == schemas_of(path).keys()
