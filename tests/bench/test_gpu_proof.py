"""What counts as a proof, and that what the package believes to be proven is."""

import json

import pytest

from bench.gpu import promote, proof
from icckd.backends.proven import PROVEN
from tests.bench.gpu_rows import MACHINE, check, missing, outcome, timing

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_kernels" name="test_graph[bfloat16-triton-cuda]"/>
<testcase classname="tests.gpu.test_cuda" name="test_streams"><skipped message="no nvcc"/></testcase>
<testcase classname="tests.gpu.test_kernels" name="test_cuda_graph"><failure message="first&#10;second"/></testcase>
</testsuite></testsuites>"""


def verdict(tests, accuracy, speed=(), machine=MACHINE, backend="triton", family="intra_class"):
    return proof.prove(machine, list(tests), list(accuracy), list(speed))["backends"][backend][family]


def test_outcomes_of_tests_are_read_with_the_backend_they_are_about(tmp_path):
    (tmp_path / "junit.xml").write_text(JUNIT)
    graph, streams, unnamed = proof.outcomes(tmp_path / "junit.xml")
    assert (graph["backend"], graph["outcome"]) == ("triton", "passed")
    assert (streams["backend"], streams["outcome"]) == ("cuda", "skipped")
    assert (unnamed["backend"], unnamed["outcome"], unnamed["why"]) == (None, "failed", "first")


def test_tests_that_never_ended_prove_nothing(tmp_path):
    assert proof.outcomes(tmp_path / "junit.xml") == []
    assert verdict([], [check()])["why"] == "no GPU test passed"


def test_tests_and_checks_that_pass_are_a_pass():
    assert verdict([outcome()], [check()], [timing("icckd triton", 1.0)]) == {
        "passed": True,
        "why": None,
        "tests_passed": 1,
        "checks_passed": 1,
    }


@pytest.mark.parametrize(
    ("tests", "accuracy", "speed", "why"),
    [
        ([outcome(), outcome("test_b", None, "failed")], [check()], [], "1 GPU tests failed, the first: test_b"),
        ([outcome(backend="cuda")], [check()], [], "no GPU test passed"),
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
        {"failed": [{"stage": "accuracy", "case": "intra_class bfloat16 n=8", "why": "killed"}]},
        {"left_out": {"accuracy": ["intra_class bfloat16 n=8"], "speed": []}},
    ],
)
def test_a_crash_or_a_check_left_out_is_no_pass_of_its_family(unfinished):
    rows = [outcome()], [check(), check(family="kd_kl")]
    assert not verdict(*rows, machine={**MACHINE, **unfinished})["passed"]
    assert verdict(*rows, machine={**MACHINE, **unfinished}, family="kd_kl")["passed"]


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
