"""`bench.gpu`: its dry run from end to end, and what becomes of crashes, hangs and a lack of time."""

import importlib.util
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from bench import table
from bench.gpu import accuracy, cases, figure, report, results, speed, stages, targets, worker
from bench.gpu.case import Contender, too_large, widened
from bench.gpu.ceilings import Ceilings
from tests.bench.gpu_rows import CEILINGS, MACHINE, check, missing, outcome, timing

CPU = torch.device("cpu")
CASE = cases.IntraClass("float32", n=40, d=8, c=5)


def test_the_dry_run_writes_everything(tmp_path):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--seconds", "900", "--output", str(tmp_path)]
    result = subprocess.run(command, cwd=stages.ROOT, capture_output=True, text=True, check=False)
    files = {path.name for path in tmp_path.iterdir()}
    wanted = {f"{name}.json" for name in ("machine", "tests", "ceilings", "accuracy", "speed", "proof")}
    assert files == wanted | {"summary.md", "speed.png"}, result.stderr
    machine = json.loads((tmp_path / "machine.json").read_text())
    assert machine["failed"] == []
    assert machine["left_out"] == {"accuracy": [], "speed": []}
    rows = results.read(tmp_path / "speed.json")
    assert {row["case"] for row in rows} == {case.name for case in cases.tiny(cases.SPEED)}
    keys = {"contender", "median_ms", "q20_ms", "q80_ms", "processor", "torch", "triton", "commit", "date", "error"}
    assert all(keys <= row.keys() for row in rows if "mode" in row)
    checks = results.read(tmp_path / "accuracy.json")
    assert [row for row in checks if row["passed"] is False] == []
    assert {row["family"] for row in checks if row["contender"] == "icckd triton"} >= {"intra_class", "cross_entropy"}
    assert json.loads((tmp_path / "proof.json").read_text())["architecture"] == "none"


@pytest.mark.parametrize("case", cases.tiny([*cases.SPEED, *cases.ACCURACY]), ids=lambda case: case.name)
def test_every_case_knows_its_work_and_its_peers_are_right(case):
    work = case.work(backward=True)
    assert work.bytes is None or work.bytes >= case.work(backward=False).bytes > 0
    exact = accuracy.exact_results(case, CPU)
    for contender in case.peers(CPU):
        if contender.checked and contender.why_not is None and not contender.name.startswith("FlexAttention"):
            errors = accuracy.errors(case, contender, CPU, exact)
            assert max(errors.values()) < speed._WRONG[case.dtype], contender.name


def test_the_work_of_the_loss_is_what_the_targets_count():
    work = cases.BYTES.work(backward=True)
    assert work.bytes == 4 * 65536 * 512 * 2
    sizes = [66] * 536 + [65] * 464
    assert sum(sizes) == 65536
    assert work.flop == 6 * sum(n * n for n in sizes) * 512


def test_names_of_cases_differ():
    for listed in (cases.SPEED, cases.ACCURACY, cases.tiny(cases.SPEED)):
        assert len({case.name for case in listed}) == len(listed)


def test_what_does_not_fit_is_said_so():
    assert too_large(1e10, 2, CPU) == "it would take about 20 GB"
    assert too_large(1e8, 2, CPU) is None


def test_widened_inputs_are_all_float64():
    x = widened(cases.IntraClass("bfloat16", n=10, d=4, c=2, slots=6).inputs(0, CPU))
    assert x.anchor.dtype == x.positive.dtype == x.memory.dtype == torch.float64
    assert x.labels.dtype == torch.int64


def with_contenders(monkeypatch, *contenders):
    monkeypatch.setattr(cases.IntraClass, "contenders", lambda self, device: list(contenders))
    ceilings = Ceilings(1e12, {"float32": 1e12})
    return list(speed.measure_case(CASE, CPU, ceilings, seconds=0, least=1))


REFERENCE = CASE.ours("reference")


def ours(function=REFERENCE, name="icckd reference", **options):
    return Contender(name, function, is_peer=False, **options)


def test_a_wrong_contender_is_not_timed(monkeypatch):
    wrong = ours(lambda x: 1.1 * REFERENCE(x), "icckd triton")
    rows = with_contenders(monkeypatch, ours(), wrong)
    (row,) = (row for row in rows if row["contender"] == "icckd triton")
    assert row["why_not"].startswith("wrong: off by 1.0e-01")
    assert "median_ms" not in row


def test_a_result_that_is_no_number_is_wrong(monkeypatch):
    rows = with_contenders(monkeypatch, ours(lambda x: torch.nan * REFERENCE(x)))
    assert [row["why_not"] for row in rows] == ["wrong: off by nan"]


def test_a_contender_that_raises_is_recorded(monkeypatch):
    def broken(x):
        raise RuntimeError("out of order")

    rows = with_contenders(monkeypatch, ours(), ours(broken, "icckd cuda"))
    (row,) = (row for row in rows if row["contender"] == "icckd cuda")
    assert row["why_not"] == "RuntimeError: out of order"


def test_modes_floors_and_factors(monkeypatch):
    peer = Contender("peer", lambda x: (time.sleep(0.02), REFERENCE(x))[1])
    rows = with_contenders(monkeypatch, ours(capturable=True), peer)
    modes = {(row["contender"], row["mode"]) for row in rows}
    assert {("peer", "forward"), ("peer", "step"), ("icckd reference", "step")} <= modes
    assert ("peer", "step, graph") not in modes
    work = CASE.work(backward=True)
    for row in rows:
        if row["mode"] == "step":
            floor = max(work.bytes, work.flop) / 1e12 * 1e3
            assert row["floor_ms"] == pytest.approx(floor)
            assert row["fraction_of_floor"] == pytest.approx(floor / row["median_ms"])
            assert row["fraction_of_bandwidth"] == pytest.approx(work.bytes / 1e9 / row["median_ms"])
            slowest = max(r["median_ms"] for r in rows if r["mode"] == "step")
            assert row["times_faster_than_best_peer"] == pytest.approx(slowest / row["median_ms"])


@pytest.fixture
def fake_worker(monkeypatch, tmp_path):
    """A visit whose workers do nothing but what the test's code for a case says."""
    monkeypatch.setattr(worker, "case_list", lambda stage, dry_run: cases.tiny(cases.SPEED)[:3])
    monkeypatch.setattr(stages, "_GRACE", 0.5)

    def visit(code, case_limit=20.0):
        monkeypatch.setattr(stages, "_CASE", case_limit)
        script = f"""
import json, os, sys, time
from pathlib import Path
progress, places, done = Path(sys.argv[1]), [int(k) for k in sys.argv[2:]], []
for k in places:
    progress.write_text(json.dumps({{"done": done, "in_hand": k}}))
    {code}
    done.append(k)
progress.write_text(json.dumps({{"done": done, "in_hand": None}}))
"""
        monkeypatch.setattr(
            stages.Visit,
            "_worker",
            lambda self, stage, places, until, progress: [
                sys.executable,
                "-c",
                script,
                str(progress),
                *map(str, places),
            ],
        )
        doing = stages.Visit(tmp_path, True, time.time() + 60)
        doing.work("speed", time.time() + (30 if case_limit > 1 else 5))
        return doing

    return visit


def test_a_crash_costs_its_case_only(fake_worker):
    doing = fake_worker("if k == 1: os.abort()")
    assert [(row["case"], row["why"]) for row in doing.failed] == [
        (cases.tiny(cases.SPEED)[1].name, "killed by SIGABRT")
    ]
    assert doing.left_out["speed"] == []
    assert not doing.stages[0]["succeeded"]


def test_an_unusable_device_costs_its_case_only(fake_worker):
    doing = fake_worker("if k == 2: sys.exit(1)")
    assert [row["why"] for row in doing.failed] == ["exit status 1"]
    assert doing.left_out["speed"] == []


def test_a_hanging_case_is_ended(fake_worker):
    doing = fake_worker("time.sleep(60 if k == 0 else 0)", case_limit=1.0)
    assert [row["case"] for row in doing.failed] == [cases.tiny(cases.SPEED)[0].name]
    assert doing.left_out["speed"] == []


def test_cases_for_which_there_is_no_time_are_named(fake_worker):
    doing = fake_worker("if k == 1: break")
    assert doing.left_out["speed"] == [case.name for case in cases.tiny(cases.SPEED)[1:3]]
    assert doing.failed == []


def test_a_worker_that_cannot_start_is_recorded(fake_worker):
    doing = fake_worker("syntax error")
    assert doing.stages[0]["why"] == "exit status 1"
    assert len(doing.left_out["speed"]) == 3


def test_a_command_that_takes_too_long_is_ended_and_its_output_kept(tmp_path):
    doing = stages.Visit(tmp_path, True, time.time() + 60)
    assert not doing.run("build", [sys.executable, "-uc", "print('begun'); import time; time.sleep(60)"], 3.0)
    assert doing.stages[0]["why"] == "ended after 3 s"
    assert doing.stages[0]["log"] == "begun\n"


@pytest.mark.parametrize(("capability", "architecture"), [("8.0", "8.0"), ("9.0", "9.0a"), ("10.0", "10.0a")])
def test_the_build_is_for_this_device_and_fails_loudly(tmp_path, monkeypatch, capability, architecture):
    given = {}
    monkeypatch.setattr(stages.Visit, "run", lambda self, stage, command, limit, **more: given.update(more))
    stages.Visit(tmp_path, False, 0.0).build(capability, 1.0)
    assert given == {"TORCH_CUDA_ARCH_LIST": architecture, "ICCKD_CUDA": "1"}


def test_a_machine_without_pytest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    doing = stages.Visit(tmp_path, True, time.time() + 60)
    doing.tests(time.time() + 60)
    assert doing.stages[0]["why"] == "pytest is not installed"
    assert results.read(tmp_path / "tests.json") == []


def test_several_processes_add_to_one_file(tmp_path):
    code = "from bench.gpu import results; from pathlib import Path; import sys\n"
    code += "for k in range(20): results.add(Path(sys.argv[1]) / 'rows.json', {'k': k})"
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=stages.ROOT) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(row["k"] for row in results.read(tmp_path / "rows.json")) == sorted([*range(20)] * 2)


def test_a_ceiling_is_the_best_size_and_a_floor_the_larger_time():
    rows = [*CEILINGS, {**CEILINGS[0], "per_second": 1e12}]
    ceilings = Ceilings.of(rows)
    assert (ceilings.bandwidth, ceilings.rates) == (4e12, {"bfloat16": 8e14})
    assert ceilings.floor(4 * 10**9, 8 * 10**9, "bfloat16") == pytest.approx(1e-3)
    assert ceilings.floor(4, 8 * 10**12, "bfloat16") == pytest.approx(1e-2)
    assert ceilings.floor(None, None, "bfloat16") is None


def test_targets_are_met_missed_or_owed():
    name = cases.BYTES.name
    rows = [
        timing("icckd triton", 1.0, name, fraction_of_bandwidth=0.82),
        timing("icckd triton", 0.1, name, mode="forward", fraction_of_bandwidth=0.9),
        timing("icckd cuda", 1.0, name, fraction_of_bandwidth=0.82),
        timing("dense, torch.compile", 9.0, name),
        timing("FlexAttention", 4.0, name),
        timing("FlexAttention, small tiles", 3.5, name),
    ]
    verdicts = {(t.backend, t.text): t.outcome(rows) for t in targets.targets()}
    first = "N = 65,536, D = 512, C = 1000: "
    assert verdicts["triton", f"{first}share of the copy bandwidth"] == (0.82, "met")
    assert verdicts["cuda", f"{first}share of the copy bandwidth"] == (0.82, "missed")
    assert verdicts["triton", f"{first}over dense, torch.compile"] == (9.0, "missed")
    assert verdicts["triton", f"{first}over FlexAttention"] == (3.5, "met")
    assert verdicts["triton", "every measured case: over its best peer"] == (3.5, "met")
    assert verdicts["cuda", "class layout, N = 65,536, C = 1000"] == (None, "owed")


def test_a_target_over_several_cases_wants_all_of_them():
    text = "loss and gradients, N = 1024, CUDA graph"
    (target,) = (t for t in targets.targets() if t.text == text)
    first, second = (case.name for case in cases.SHORT)
    assert target.outcome([timing("icckd triton", 0.05, first)]) == (None, "owed")
    both = [timing("icckd triton", 0.05, first), timing("icckd triton", 0.07, second, mode="step, graph")]
    assert target.outcome(both) == (pytest.approx(70), "missed")


def test_the_summary_says_what_went_wrong():
    machine = {
        **MACHINE,
        "failed": [{"stage": "speed", "case": "kd_kl bfloat16", "why": "killed by SIGSEGV"}],
        "left_out": {"accuracy": [], "speed": ["relational bfloat16"]},
    }
    verdict = {"passed": False, "why": "loss is off", "tests_passed": 0, "checks_passed": 0}
    proof = {"backends": {"triton": {"intra_class": verdict}}, "fastest": {"intra_class": "reference"}}
    failed = {**outcome("test_streams", how="failed"), "why": "a race"}
    rows = [*CEILINGS, check(), timing("icckd triton", 1.0), missing("dense", "it would take | 9 GB")]
    text = report.summary(machine, proof, [failed], rows, dry_run=False)
    for part in (
        "killed by SIGSEGV",
        "relational bfloat16 | | left out for lack of time",
        "loss is off",
        "intra_class: reference",
        "- test_streams: a race",
        "| copy, read + written | 4.00 TB/s |",
        "| dense | it would take \\| 9 GB |",
        "| icckd triton |  | 1.000 |",
    ):
        assert part in text


def test_documents_say_owed_until_a_gpu_has_given_rows():
    text = "".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in report.TABLES)
    dry = [{**timing("icckd triton", 1.0), "device": "cpu"}]
    owed = table.fill(text, dry)
    assert owed == table.fill(text, [])
    assert owed.count(report.OWED) == len(report.TABLES) - 1
    assert "met" not in owed.replace("measured", "")
    filled = table.fill(text, [*CEILINGS, check(), timing("icckd triton", 1.0)])
    assert filled.count(report.OWED) == len(report.TABLES) - 4
    assert "NVIDIA Made-Up, torch 2.11, Triton 3.6, icckd at commit abc, 2026-01-01." in filled


def test_a_dry_run_meets_and_misses_nothing():
    rows = [timing("icckd triton", 1.0, case.name) for case in cases.tiny(cases.SPEED)]
    lines = report.target_table(rows, tiny=True).splitlines()[2:]
    assert all(line.endswith("| dry run |") for line in lines)


def test_the_figure_is_drawn(tmp_path):
    figure.draw([timing("icckd triton", 1.0), timing("icckd cuda", 2.0, fraction_of_floor=None)], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_device_the_command_says_so(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.gpu", "--output", str(tmp_path)]
    result = subprocess.run(command, cwd=stages.ROOT, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    assert "There is no device that PyTorch can use; --dry-run needs none." in result.stderr
