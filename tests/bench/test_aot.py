"""What `bench.aot` finds in kernels that have nothing wrong, and in kernels that have one fault each."""

import importlib
import json
import sys

import pytest

pytest.importorskip("triton")

from bench import aot
from icckd.kernels.specialization import Specialization
from tests.bench.kernels_for_aot import product

PACKAGE = "tests.bench.kernels_for_aot"


@pytest.fixture(scope="module")
def rows():
    """Every kernel of the package on Hopper."""
    return {row["kernel"]: row for row in aot.compile_all(["sm_90"], PACKAGE, processes=1)}


def test_a_good_kernel_has_no_problem_and_is_compiled_once(rows):
    row = rows["product"]
    assert row["problem"] is None
    assert row["matrix_unit"] == "wgmma"
    assert row["spills"] == 0
    assert 0 < row["registers"] <= 255
    assert row["shared"] >= 2 * 64 * 64 * 2
    assert row["description"] == "first use; second use"


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        ("spilling", "spills registers"),
        ("without_matrix_unit", "does not use wgmma"),
        ("with_too_much_shared_memory", "needs more than 232448 bytes of shared memory"),
        ("not_compiling", "does not compile"),
    ],
)
def test_each_fault_is_found(rows, kernel, problem):
    assert problem in rows[kernel]["problem"]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_100", "gfx942"])
def test_every_architecture_shows_its_own_instruction(architecture):
    with aot.process_pool(1) as pool:
        row = pool.submit(aot._examine_kth, product.__name__, architecture, 0).result()
    assert row["problem"] is None
    assert row["matrix_unit"] == aot.OWN_INSTRUCTION[architecture]


@pytest.mark.parametrize(
    ("architecture", "options", "accepted"),
    [
        ("sm_90", {"BLOCK_M": 64}, {"wgmma"}),
        ("sm_90", {"BLOCK_M": 32}, {"wgmma", "mma"}),
        ("sm_100", {"BLOCK": 128}, {"tcgen05"}),
        ("gfx942", {"BLOCK_M": 16}, {"mfma"}),
    ],
)
def test_small_tiles_may_use_the_older_instruction(architecture, options, accepted):
    form = Specialization(product.product, {}, {}, options, matrix_unit=True)
    assert aot.accepted_instructions(form, architecture) == accepted


def test_no_matrix_instruction_is_asked_of_a_kernel_that_does_not_multiply():
    form = Specialization(product.product, {}, {}, {"BLOCK": 64})
    assert aot.accepted_instructions(form, "sm_90") == set()


def test_an_argument_that_is_given_no_type_and_no_value_is_named():
    form = Specialization(product.product, {"x": "*bf16", "y": "*bf16"}, {"unused": None}, {"BLOCK": 64})
    with pytest.raises(ValueError, match="product: out: neither a type nor a value is given"):
        aot._arguments(form)


def specialized_integers(module):
    """Integers of a module's kernels that would be constants where they are 1."""
    forms = importlib.import_module(module).specializations("sm_90")
    return {
        (form.kernel.__name__, parameter.name)
        for form in forms
        for parameter in form.kernel.params
        if form.signature.get(parameter.name) == "i32" and not parameter.do_not_specialize
    }


@pytest.mark.parametrize("module", ["cross_entropy", "distillation"])
def test_a_size_of_one_is_a_number_like_any_other(module):
    with aot.process_pool(1) as pool:
        assert pool.submit(specialized_integers, f"icckd.kernels.{module}").result() == set()


def test_the_command_writes_rows_and_fails_where_a_kernel_does(tmp_path, monkeypatch, capsys):
    arguments = ["--arch", "sm_80", "--package", PACKAGE, "--processes", "1", "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr(sys, "argv", ["aot", *arguments])
    assert aot.main() == 1
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {"kernel", "arch", "config", "registers", "spills", "shared", "matrix_unit"} <= rows[-1].keys()
    printed = capsys.readouterr().out
    assert "5 compiled forms, 4 with a problem" in printed
    assert "← spills registers" in printed


def test_a_package_without_kernels_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aot", "--arch", "sm_80", "--package", "tests.bench", "--processes", "1"])
    assert aot.main() == 1
    assert "0 compiled forms" in capsys.readouterr().out
