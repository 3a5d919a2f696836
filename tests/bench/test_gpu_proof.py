"""What counts as a proof, and that what the package believes to be proven is."""

import json
import subprocess
import sys

import pytest

from bench.gpu import outcomes, promote, proof
from icckd.backends import FAMILIES
from icckd.backends.proven import PROVEN
from tests.bench.gpu_rows import MACHINE, check, crash, missing, outcome, timing


def verdict(tests, accuracy, speed=(), machine=MACHINE, backend="triton", family="intra_class"):
    return proof.prove(machine, list(tests), list(accuracy), list(speed))["backends"][backend][family]


@pytest.mark.parametrize(
    ("test", "backend", "families"),
    [
        ("tests/gpu/test_accuracy.py::test_kd_kl[7-2-False-torch.float16-triton-cuda]", "triton", ["kd_kl"]),
        ("tests/gpu/test_accuracy.py::test_relational[rkd_angle-cuda-cuda]", "cuda", ["relational"]),
        ("tests/gpu/test_execution.py::test_compiles_whole[cuda-cuda-rkd_angle]", "cuda", ["relational"]),
        (
            "tests/gpu/test_execution.py::test_compiles_whole[triton-cuda-intra_class_with_memory]",
            "triton",
            ["intra_class"],
        ),
        ("tests/gpu/test_accuracy.py::test_bank_products[triton-cuda-sizes0]", "triton", ["bank"]),
        (
            "tests/gpu/test_execution.py::test_compiles_whole[center_contrastive-cuda-cuda]",
            "cuda",
            ["cross_entropy"],
        ),
        ("tests/csrc/test_cuda_sources.py::test_streams", "cuda", None),
        ("tests/gpu/test_other.py::test_streams", None, None),
    ],
)
def test_a_test_is_about_what_its_name_and_parameters_say(test, backend, families):
    assert outcomes.described(test) == {"test": test, "backend": backend, "families": families}


def test_every_gpu_test_says_what_it_is_about():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-m", "gpu", "tests/gpu", "-p", "no:xdist"]
    listed = subprocess.run(command, cwd=promote.ROOT, capture_output=True, text=True, check=True, timeout=300)
    tests = [outcomes.described(line) for line in listed.stdout.splitlines() if "::" in line]
    assert len(tests) > 200
    assert [test for test in tests if test["backend"] is None or len(test["families"] or []) != 1] == []
    assert {(test["backend"], family) for test in tests for family in test["families"]} == {
        (backend, family) for backend in proof.BACKENDS for family in (*FAMILIES, "bank", "hierarchical")
    }


def test_without_tests_nothing_is_proven_and_nothing_the_fastest():
    rows = [timing("icckd triton", 1.0), timing("icckd reference", 2.0)]
    assert verdict([], [check()], rows)["why"] == "its GPU tests are owed"
    assert proof.prove(MACHINE, [], [check()], rows)["fastest"] == {}


def test_tests_and_checks_that_pass_are_a_pass():
    assert verdict([outcome()], [check()], [timing("icckd triton", 1.0)]) == {
        "passed": True,
        "why": None,
        "tests_planned": 1,
        "tests_passed": 1,
        "tests_failed": 0,
        "tests_skipped": 0,
        "tests_not_run": 0,
        "checks_passed": 1,
    }


@pytest.mark.parametrize(
    ("tests", "accuracy", "speed", "why"),
    [
        ([outcome(), outcome("test_b", None, "failed")], [check()], [], "1 GPU tests failed, the first: test_b"),
        ([outcome(backend="cuda")], [check()], [], "its GPU tests are owed"),
        ([outcome(families=["kd_kl"])], [check()], [], "its GPU tests are owed"),
        ([outcome(how="skipped")], [check()], [], "no GPU test passed"),
        ([outcome()], [], [], "nothing was checked"),
        ([outcome()], [check(), check(passed=False, why="loss is off")], [], "loss is off"),
        ([outcome()], [check(passed=None, why="there is no device")], [], "there is no device"),
        ([outcome()], [check()], [missing("icckd triton", "wrong: off by 1")], "wrong: off by 1"),
    ],
)
def test_whatever_is_wrong_is_no_pass(tests, accuracy, speed, why):
    result = verdict(tests, accuracy, speed)
    assert not result["passed"]
    assert why in result["why"]


@pytest.mark.parametrize(
    "unfinished",
    [
        {"failed": [crash("accuracy", "intra_class bfloat16 n=8")]},
        {"failed": [crash("accuracy", "intra_class bfloat16 n=8", "icckd triton")]},
        {"failed": [crash("peers", "intra_class bfloat16 n=8", "icckd triton")]},
        {"failed": [crash("speed", "intra_class bfloat16 n=8")]},
        {"left_out": {"tests": [], "accuracy": ["intra_class bfloat16 n=8"]}},
    ],
)
def test_a_crash_or_a_check_left_out_is_no_pass_of_its_family(unfinished):
    rows = [outcome()], [check(), check(family="kd_kl")]
    assert not verdict(*rows, machine={**MACHINE, **unfinished})["passed"]
    assert verdict(*rows, machine={**MACHINE, **unfinished}, family="kd_kl")["passed"]


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"failed": [crash("compile", "intra_class bfloat16 n=8", "icckd triton")]},
        {"failed": [crash("compile_all", "intra_class bfloat16 n=8", "FlexAttention")]},
        {"failed": [crash("peers", "intra_class bfloat16 n=8")]},
        {"failed": [crash("accuracy", "intra_class bfloat16 n=8", "icckd cuda")]},
        {"left_out": {"tests": [], "accuracy": ["kd_kl bfloat16 n=8"], "speed": ["intra_class bfloat16 n=8"]}},
    ],
)
def test_what_goes_wrong_elsewhere_is_no_matter(elsewhere):
    peer = missing("FlexAttention", "RuntimeError: out of resource: shared memory")
    assert verdict([outcome()], [check()], [peer], machine={**MACHINE, **elsewhere})["passed"]


def test_a_failed_test_fails_its_families_alone():
    tests = [outcome(), outcome("test_rkd", how="failed", families=["relational"])]
    checks = [check(), check(family="relational")]
    assert verdict(tests, checks)["passed"]
    assert not verdict(tests, checks, family="relational")["passed"]


def test_tests_that_were_cut_off_are_counted():
    cut_off = {"tests": ["test_kd_kl[triton-cuda]", "test_intra_class[triton-cuda]", "test_b[cuda-cuda]"]}
    result = verdict([outcome()], [check()], machine={**MACHINE, "left_out": {"accuracy": [], **cut_off}})
    assert (result["passed"], result["tests_planned"], result["tests_not_run"]) == (True, 2, 1)


def test_speeds_of_other_code_or_of_another_device_count_for_nothing():
    for other in ({"commit": "old"}, {"processor": "NVIDIA Other"}):
        assert fastest(timing("icckd triton", 1.0, **other)) == {}
        assert fastest(timing("icckd triton", 2.0), timing("icckd cuda", 1.0, **other)) == {"intra_class": "triton"}


BOTH_PASS = [outcome(), outcome(backend="cuda")]


def fastest(*speed, tests=BOTH_PASS):
    result = proof.prove(MACHINE, tests, [check(), check("cuda")], list(speed))
    return result["fastest"]


def test_the_fastest_has_the_least_geometric_mean_over_common_cases():
    rows = [timing("icckd triton", 1.0), timing("icckd cuda", 2.0), timing("icckd reference", 30.0)]
    case = {"case": "intra_class bfloat16 n=2"}
    rows += [
        timing("icckd triton", 9.0, **case),
        timing("icckd cuda", 1.0, **case),
        timing("icckd reference", 8, **case),
    ]
    rows.append(timing("icckd cuda", 1000.0, case="intra_class bfloat16 n=3"))
    assert fastest(*rows) == {"intra_class": "cuda"}


def test_a_replay_counts_where_it_is_faster_and_a_forward_pass_does_not():
    rows = [
        timing("icckd triton", 5.0),
        timing("icckd triton", 1.0, mode="step, graph"),
        timing("icckd reference", 4.0),
    ]
    rows += [timing("icckd cuda", 3.0), timing("icckd cuda", 0.1, mode="forward")]
    assert fastest(*rows) == {"intra_class": "triton"}


def test_plain_pytorch_can_be_the_fastest_and_one_that_failed_cannot():
    rows = [timing("icckd triton", 5.0), timing("icckd cuda", 1.0), timing("icckd reference", 4.0)]
    assert fastest(*rows, tests=[outcome(), outcome(backend="cuda", how="failed")]) == {"intra_class": "reference"}


def test_a_family_that_was_not_measured_has_no_fastest():
    assert fastest() == {}


def test_the_newest_proof_of_an_architecture_counts_and_dry_runs_do_not(tmp_path):
    for name, architecture, date, best in (
        ("h200", "sm_90", "2026-02", "cuda"),
        ("h100", "sm_90", "2026-01", "triton"),
        ("dry", "none", "2026-03", "triton"),
        ("a100", "sm_80", "2026-01", "reference"),
    ):
        (tmp_path / name).mkdir()
        content = {"architecture": architecture, "date": date, "fastest": {"intra_class": best}}
        (tmp_path / name / "proof.json").write_text(json.dumps(content))
    assert promote.proven(promote.proofs(tmp_path)) == {
        "sm_90": {"intra_class": "cuda"},
        "sm_80": {"intra_class": "reference"},
    }


def test_the_written_module_holds_the_table(tmp_path, monkeypatch):
    table = {"sm_90": {"intra_class": "cuda", "kd_kl": "triton"}, "sm_80": {"relational": "reference"}}
    monkeypatch.setattr(promote, "TARGET", tmp_path / "proven.py")
    monkeypatch.setattr(promote, "proofs", lambda: [
        {"architecture": name, "date": "", "fastest": fastest} for name, fastest in table.items()
    ])  # fmt: skip
    promote.main()
    names = {}
    exec((tmp_path / "proven.py").read_text(), names)
    assert names["PROVEN"] == table


def test_everything_that_the_package_takes_for_proven_has_a_recorded_proof():
    recorded = promote.proofs()
    assert promote.proven(recorded) == PROVEN
    assert promote.TARGET.read_text() == promote.source(PROVEN)
    for entry in recorded:
        for family, backend in entry["fastest"].items():
            assert backend == "reference" or entry["backends"][backend][family]["passed"]
