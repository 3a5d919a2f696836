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
from bench.gpu import accuracy, cases, figure, predictions, record, report, results, speed, stages, targets, worker
from bench.gpu.ceilings import Ceilings
from icckd.backends import FAMILIES
from icckd.bench.accuracy import WRONG
from icckd.bench.case import Contender, too_large, widened
from tests.bench.gpu_rows import CEILINGS, MACHINE, check, crash, missing, outcome, timing

CPU = torch.device("cpu")
CASE = cases.IntraClass("float32", n=40, d=8, c=5)


@pytest.mark.parametrize("only", [("class_memory", "layout"), pytest.param((), marks=pytest.mark.slow)])
def test_the_dry_runs_of_both_parts_write_everything(tmp_path, only):
    pytest.importorskip("triton")

    def dry_run(part):
        command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--part", part, "--seconds", "900"]
        command += ["--output", str(tmp_path / "visit"), *(["--cases", *only] if only else [])]
        return subprocess.run(command, cwd=stages.ROOT, capture_output=True, text=True, check=False)

    def files():
        return {path.name for path in tmp_path.rglob("*") if path.is_file()}

    def read(name):
        return json.loads((tmp_path / "visit" / name).read_text())

    def listed(stage):
        return {case.name for case in worker.case_list(stage, True, only)}

    result = dry_run("prove")
    assert files() == set(record.FILES) - {"speed.png"}, result.stderr
    proven = {name: read(name) for name in ("tests.json", "accuracy.json")}
    assert len(proven["tests.json"]) > 200
    assert {row["outcome"] for row in proven["tests.json"]} == {"skipped"}
    checks = proven["accuracy.json"]
    assert [row for row in checks if row["passed"] is False] == []
    assert {row["case"] for row in checks if "error" in row} == listed("accuracy")
    result = dry_run("measure")
    assert files() == set(record.FILES), result.stderr
    assert {name: read(name) for name in proven} == proven
    rows = read("speed.json")
    assert {row["case"] for row in rows} == listed("peers")
    keys = {"contender", "median_ms", "q20_ms", "q80_ms", "processor", "torch", "triton", "commit", "date", "error"}
    assert all(keys <= row.keys() for row in rows if "mode" in row)
    assert len({(row["case"], row["contender"], row.get("mode")) for row in rows}) == len(rows)
    machine = read("machine.json")
    assert machine["failed"] == []
    assert not any(machine["left_out"].values())
    assert {stage["part"] for stage in machine["stages"]} == {"prove", "measure"}
    assert read("proof.json")["architecture"] == "none"
    # What a caller sees of a long output is its end.
    assert result.stdout.rstrip().endswith("| dry run |")
    assert len(result.stdout[result.stdout.index("| part | stage |") :]) < 12_000


def test_the_visit_imports_nothing_that_its_machine_may_lack():
    """Torch, Triton, NumPy and the tests' own packages are enough; the C++ extension is not built there."""
    code = """
import importlib, pkgutil, sys
for name in ("icckd._C", "jsonargparse", "matplotlib", "pybind11", "pykeops", "pytorch_metric_learning", "safetensors"):
    sys.modules[name] = None
import bench.gpu, tests.conftest, tests.gpu
for package in (bench.gpu, tests.gpu):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-c", code], cwd=stages.ROOT, check=True, timeout=300)


def test_what_fails_to_compile_ahead_stops_nothing_behind_it():
    def broken(x):
        raise RuntimeError("out of resource: shared memory")

    called, marks = [], []

    def good(x):
        called.append(len(x.anchor))
        return REFERENCE(x)

    contenders = [
        Contender("broken", broken, compiles=True),
        Contender("compiles nothing", broken),
        Contender("cannot", broken, why_not="too large", compiles=True),
        Contender("good", good, compiles=True),
    ]
    worker.compile_case(CASE, contenders, CPU, marks.append)
    assert (called, marks) == ([40, 40], ["broken", "good"])


def test_peers_take_part_after_the_project_alone():
    names = {stage: [contender.name for contender in worker.contenders_of(stage, CASE, CPU)] for stage in worker._CASES}
    assert names["speed"] == names["compile"] == ["icckd triton", "icckd cuda"]
    assert names["accuracy"] == [*names["speed"], "icckd reference"]
    assert names["peers"] == names["compile_all"] == [contender.name for contender in CASE.contenders(CPU)]
    assert worker.case_list("speed", False) == cases.TARGETS
    assert set(cases.TARGETS) < set(worker.case_list("peers", False))
    assert {case.family for case in cases.TARGETS} >= set(FAMILIES)


@pytest.mark.parametrize("case", cases.tiny([*cases.SPEED, *cases.ACCURACY]), ids=lambda case: case.name)
def test_every_case_knows_its_work_and_its_peers_are_right(case):
    work = case.work(backward=True)
    assert work.bytes is None or work.bytes >= case.work(backward=False).bytes > 0
    exact = accuracy.exact_results(case, CPU)
    for contender in case.peers(CPU):
        if contender.checked and contender.why_not is None and not contender.name.startswith("FlexAttention"):
            errors = accuracy.errors(case, contender, CPU, exact)
            assert max(errors.values()) < WRONG[case.dtype], contender.name


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


def measured(*contenders):
    ceilings = Ceilings(1e12, {"float32": 1e12})
    marks = []
    batches = speed.measure_case(CASE, list(contenders), CPU, ceilings, 0, 1, marks.append)
    rows = [row for batch in batches for row in batch]
    assert {None, *(contender.name for contender in contenders)} >= set(marks)
    return rows


REFERENCE = CASE.ours("reference")


def ours(function=REFERENCE, name="icckd reference", **options):
    return Contender(name, function, is_peer=False, **options)


def test_a_wrong_contender_is_not_timed():
    wrong = ours(lambda x: 1.1 * REFERENCE(x), "icckd triton")
    rows = measured(ours(), wrong)
    (row,) = (row for row in rows if row["contender"] == "icckd triton")
    assert row["why_not"].startswith("wrong: off by 1.0e-01")
    assert "median_ms" not in row


def test_a_result_that_is_no_number_is_wrong():
    rows = measured(ours(lambda x: torch.nan * REFERENCE(x)))
    assert [row["why_not"] for row in rows] == ["wrong: off by nan"]


def test_a_contender_that_raises_is_recorded():
    def broken(x):
        raise RuntimeError("out of order")

    rows = measured(ours(), ours(broken, "icckd cuda"))
    (row,) = (row for row in rows if row["contender"] == "icckd cuda")
    assert row["why_not"] == "RuntimeError: out of order"


def test_modes_floors_and_factors():
    peer = Contender("peer", lambda x: (time.sleep(0.02), REFERENCE(x))[1])
    rows = measured(ours(capturable=True), peer)
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
            (of_peer,) = (r["median_ms"] for r in rows if r["mode"] == "step" and r["is_peer"])
            assert row["times_faster_than_best_peer"] == pytest.approx(of_peer / row["median_ms"])


@pytest.fixture
def fake_worker(monkeypatch, tmp_path):
    """A visit whose workers do nothing but what the test's code for case k and contender c says."""
    monkeypatch.setattr(worker, "case_list", lambda stage, dry_run, only: cases.SPEED[:3])
    monkeypatch.setattr(stages, "_LAST", 0.0)

    def visit(code, begin="pass", patience=20.0, seconds=30.0):
        monkeypatch.setitem(stages._CASE, "speed", patience)
        script = f"""
import json, os, sys, time
progress, without, *places = sys.argv[1:]
done = []
{begin}
def mark(k, c):
    with open(progress + ".new", "w") as file:
        json.dump({{"done": done, "in_hand": k, "contender": c}}, file)
    os.replace(progress + ".new", progress)
for k in map(int, places):
    for c in ("triton", "cuda"):
        mark(k, c)
        if f"{{k}} {{c}}" not in without.split(","):
            {code}
    mark(k, None)
    done.append(k)
mark(None, None)
"""
        monkeypatch.setattr(
            stages.Visit,
            "_worker",
            lambda self, stage, places, without, until, progress: [
                sys.executable,
                "-c",
                script,
                str(progress),
                ",".join(f"{k} {c}" for k, c in without),
                *map(str, places),
            ],
        )
        doing = stages.Visit(tmp_path, tmp_path, True, time.time() + 60, part="measure")
        doing.work("speed", time.time() + seconds)
        return doing

    return visit


NAMES = [case.name for case in cases.SPEED[:3]]


def crashes(doing):
    return [(row["case"], row["contender"], row["why"]) for row in doing.failed]


def test_a_crash_costs_one_contender_of_its_case_only(fake_worker):
    doing = fake_worker("if (k, c) == (1, 'cuda'): os.abort()")
    assert crashes(doing) == [(NAMES[1], "cuda", "killed by SIGABRT")]
    assert doing.left_out["speed"] == []
    assert not doing.stages[0]["succeeded"]


def test_an_unusable_device_costs_one_contender_only(fake_worker):
    doing = fake_worker("if (k, c) == (2, 'triton'): sys.exit(1)")
    assert crashes(doing) == [(NAMES[2], "triton", "exit status 1")]
    assert doing.left_out["speed"] == []


def test_a_contender_that_goes_on_crashing_is_left_out_of_its_family(fake_worker):
    assert len({name.split()[0] for name in NAMES}) == 1
    doing = fake_worker("if c == 'cuda': os.abort()")
    assert [case for case, _, _ in crashes(doing)] == NAMES[:2]
    assert doing.left_out["speed"] == []


def test_a_worker_may_take_its_time_to_start(fake_worker):
    doing = fake_worker("pass", begin="time.sleep(3)", patience=1.0)
    assert doing.failed == []
    assert doing.left_out["speed"] == []


def test_a_hanging_contender_is_ended(fake_worker):
    doing = fake_worker("time.sleep(60 if (k, c) == (0, 'cuda') else 0)", patience=1.0)
    assert crashes(doing) == [(NAMES[0], "cuda", "ended after 1 s")]
    assert doing.left_out["speed"] == []


def test_what_was_under_way_when_time_was_up_is_left_out_and_no_failure(fake_worker):
    doing = fake_worker("time.sleep(60 if k == 1 else 0)", seconds=4.0)
    assert doing.failed == []
    assert doing.left_out["speed"] == NAMES[1:]
    assert doing.stages[0]["succeeded"]


def test_a_worker_that_cannot_start_is_recorded(fake_worker):
    doing = fake_worker("syntax error")
    assert doing.stages[0]["why"] == "exit status 1"
    assert len(doing.left_out["speed"]) == 3


def test_a_command_that_takes_too_long_is_ended_and_its_output_kept(tmp_path):
    doing = stages.Visit(tmp_path, tmp_path, True, time.time() + 60)
    command = [sys.executable, "-uc", "print('begun'); import time; time.sleep(60)"]
    assert not doing.run("build", command, time.time() + 3.0)
    assert doing.stages[0]["why"] == "ended after 3 s"
    assert doing.stages[0]["log"] == "begun\n"


@pytest.mark.parametrize(("capability", "architecture"), [("8.0", "8.0"), ("9.0", "9.0a"), ("10.0", "10.0a")])
def test_the_build_is_for_this_device_and_fails_loudly(tmp_path, monkeypatch, capability, architecture):
    given = {}
    monkeypatch.setattr(stages.Visit, "run", lambda self, stage, command, until, **more: given.update(more))
    stages.Visit(tmp_path, tmp_path, False, 0.0).build(capability, 1.0)
    assert given == {"TORCH_CUDA_ARCH_LIST": architecture, "ICCKD_CUDA": "1", "ICCKD_NO_EXTENSION": "1"}


def test_what_is_built_already_is_not_built_again(tmp_path, monkeypatch):
    built = []

    def build(self, stage, command, until, **_):
        built.append(command)
        (tmp_path / "build" / "cuda").mkdir(parents=True, exist_ok=True)
        (tmp_path / "_cuda.so").touch()
        return True

    monkeypatch.setattr(stages.Visit, "run", build)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setattr(stages, "LIBRARY", tmp_path / "_cuda.so")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "setup.py").touch()
    doing = stages.Visit(tmp_path, tmp_path, False, 0.0)
    for capability, source in (("9.0", "a"), ("9.0", "a"), ("8.0", "a"), ("8.0", "b"), ("8.0", "b")):
        (tmp_path / "csrc" / "a.cu").write_text(source)
        doing.build(capability, 1.0)
    assert len(built) == 3


def test_a_machine_without_pytest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    doing = stages.Visit(tmp_path, tmp_path, True, time.time() + 60)
    doing.tests("triton", "triton", time.time() + 60, 1)
    assert doing.stages[0]["why"] == "pytest is not installed"


def test_several_processes_add_to_one_file(tmp_path):
    code = "from bench.gpu import results; from pathlib import Path; import sys\n"
    code += "for k in range(20): results.add(Path(sys.argv[1]) / 'rows.json', {'k': k})"
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=stages.ROOT) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(row["k"] for row in results.read(tmp_path / "rows.json")) == sorted([*range(20)] * 2)


def test_a_ceiling_is_the_best_size_and_a_floor_the_larger_time():
    rows = [*CEILINGS, {**CEILINGS[0], "per_second": 1e12}]
    ceilings = Ceilings.of(rows, "NVIDIA Made-Up")
    assert (ceilings.bandwidth, ceilings.rates, ceilings.assumed) == (4e12, {"bfloat16": 8e14}, False)
    assert ceilings.floor(4 * 10**9, 8 * 10**9, "bfloat16") == pytest.approx(1e-3)
    assert ceilings.floor(4, 8 * 10**12, "bfloat16") == pytest.approx(1e-2)
    assert ceilings.floor(None, None, "bfloat16") is None
    assert ceilings.floor(4, 8, "float16") is None


def test_ceilings_that_were_not_measured_are_assumed_where_the_kind_of_device_is_known():
    ceilings = Ceilings.of(CEILINGS[:1], "NVIDIA H200")
    assert (ceilings.bandwidth, ceilings.rates["bfloat16"], ceilings.assumed) == (4e12, 790e12, True)
    assert Ceilings.of([], "NVIDIA H100 80GB HBM3").bandwidth == 3.0e12
    assert Ceilings.of([], "NVIDIA Made-Up") == Ceilings(None, {})


def test_speeds_without_ceilings_have_no_shares():
    batches = speed.measure_case(CASE, [ours()], CPU, Ceilings(None, {}), 0, 1, lambda _: None)
    rows = [row for batch in batches for row in batch]
    assert {row["fraction_of_floor"] for row in rows} == {row["fraction_of_matrix_rate"] for row in rows} == {None}
    assert all(row["median_ms"] > 0 for row in rows)


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
    layouts = [timing("icckd triton", 0.03, cases.LAYOUT.name), timing("icckd cuda", 0.012, cases.LAYOUT.name)]
    (layout,) = (t for t in targets.targets() if t.text.startswith("class layout"))
    assert layout.outcome(layouts) == (pytest.approx(12), "met")


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
        "failed": [crash("speed", "kd_kl bfloat16", "icckd cuda")],
        "left_out": {"tests": ["test_b"], "accuracy": [], "speed": ["relational bfloat16"]},
    }
    verdict = {"passed": False, "why": "loss is off", "tests_planned": 2, "tests_passed": 0, "checks_passed": 0}
    proof = {"backends": {"triton": {"intra_class": verdict}}, "fastest": {"intra_class": "reference"}}
    failed = {**outcome("test_streams", how="failed"), "why": "a race"}
    rows = [*CEILINGS, check(), timing("icckd triton", 1.0), missing("dense", "it would take | 9 GB")]
    text = report.summary(machine, proof, [failed], rows)
    for part in (
        "kd_kl bfloat16, icckd cuda | | killed by SIGSEGV",
        "0 passed, 1 failed, 0 skipped, 1 not run",
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
    # Targets and predictions are there without a measurement.
    assert owed.count(report.OWED) == len(report.TABLES) - 2
    assert "met" not in owed.replace("measured", "")
    filled = table.fill(text, [*CEILINGS, check(), timing("icckd triton", 1.0)])
    assert filled.count(report.OWED) == len(report.TABLES) - 5
    assert "NVIDIA Made-Up, torch 2.11, Triton 3.6, icckd at commit abc, 2026-01-01." in filled


def test_of_several_runs_each_case_shows_its_newest():
    first = {**timing("icckd triton", 1.0), "commit": "aaa", "date": "2026-01-01T00:00:00+00:00"}
    second = {**timing("icckd triton", 2.0), "commit": "bbb", "date": "2026-01-02T00:00:00+00:00"}
    other = {**timing("icckd triton", 3.0, "intra_class float32"), "commit": "aaa", "date": "2026-01-01T00:00:01+00:00"}
    text = report.TABLES[f"gpu_{first['family']}"]([first, second, other])
    assert "2.000" in text
    assert "3.000" in text
    assert "1.000" not in text
    assert "bbb and aaa" in text


def test_predictions_stand_beside_what_each_run_measured():
    case = predictions.PREDICTIONS[0].case.name
    rows = [
        {**timing("icckd triton", 0.5, case), "commit": "bbbbbbb", "date": "2026-01-02"},
        {**timing("icckd triton", 0.25, case), "commit": "aaaaaaa", "date": "2026-01-01"},
    ]
    lines = predictions.table(rows).splitlines()
    assert lines[0].endswith("| measured at aaaaaaa | measured at bbbbbbb |")
    assert lines[2].endswith(" | 89 | 435 | 165 | 250 | 500 |")
    assert lines[3].endswith(" | 280 | 135 |  |  |")


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
    assert "There is no device that PyTorch can use, or it does not answer; --dry-run needs none." in result.stderr
