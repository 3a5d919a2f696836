"""The sources use only names that the oldest LibTorch has, which pyproject.toml allows: here is a newer one."""

import re
import shutil
from pathlib import Path

import pytest

from bench.compat import NAMES, TORCH, stable_names, undefined_names
from icckd.backends.cuda import LIBRARY

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu"))
LIBRARIES = [*(ROOT / "icckd").glob("_C*.so"), *([LIBRARY] if LIBRARY.exists() else [])]
THERE = {line for line in NAMES.read_text().splitlines() if not line.startswith("#")}


def used_names(code):
    """LibTorch's macros, its C functions, and what is reached through its namespaces."""
    names = set(re.findall(r"\b(?:STD_|STABLE_)?TORCH_\w+|\b(?:aoti_)?torch_\w+", code))
    for path in re.findall(r"\btorch::(?:stable|headeronly)((?:::\w+)+)", code):
        names.update(path.strip(":").split("::"))
    return names


def test_oldest_version_is_the_one_that_is_promised():
    assert f'"torch>={TORCH[0].removesuffix(".0")}"' in (ROOT / "pyproject.toml").read_text()
    assert f"LibTorch {TORCH[0]} " in NAMES.read_text().splitlines()[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "csrc")))
def test_sources_use_no_newer_name(path):
    assert used_names(re.sub(r"//[^\n]*", "", path.read_text())) - THERE == set()


def test_newer_names_are_recognised():
    code = """
    STABLE_TORCH_ERROR_CODE_CHECK(torch_set_device(0));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(x, &dim));
    auto y = torch::stable::contiguous(torch::stable::brand_new(x));
    torch::headeronly::ScalarType z;
    """
    assert used_names(code) - THERE == {"STABLE_TORCH_ERROR_CODE_CHECK", "torch_set_device", "brand_new"}


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm to look into the files with")
@pytest.mark.parametrize("path", LIBRARIES, ids=lambda path: path.name)
def test_libraries_call_no_newer_function(path):
    """Inline functions of this LibTorch's headers call others: the file is for older ones too."""
    called = undefined_names(path)
    assert called
    assert called - THERE == set()


def test_names_are_found_in_headers(tmp_path):
    folder = tmp_path / "torch" / "csrc" / "stable"
    folder.mkdir(parents=True)
    (folder / "x.h").write_text("""
    // class Commented
    #define  STD_TORCH_MACRO(x) x
    HIDDEN_NAMESPACE_BEGIN(torch, stable, inner)
    AOTI_TORCH_EXPORT int torch_function(int);
    inline torch::stable::Tensor method(const Tensor& self) { return self; }
    class Type {};
    """)
    wanted = {"STD_TORCH_MACRO", "torch", "stable", "inner", "torch_function", "method", "Type"}
    assert stable_names(tmp_path) == wanted
