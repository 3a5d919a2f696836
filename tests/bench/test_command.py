"""`icckd bench`: it computes the definition, its rows say what was measured, and what is wrong is said first."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import recorded as recording_script
from icckd import reference
from icckd.bench import command, options, recorded, speed
from icckd.bench.accuracy import WRONG, errors, exact_results
from icckd.bench.case import Contender, Work, too_large
from icckd.bench.floor import described, floor_calls, floor_of
from icckd.bench.functions import FUNCTIONS
from icckd.bench.functions.distillation import KdKl
from icckd.cli import main

CPU = torch.device("cpu")
KD = KdKl("float32", n=8, c=5)
DEFINITIONS = {
    "intra_class_contrastive": lambda x: reference.intra_class_contrastive(
        x.anchor, x.positive, x.labels, gate=x.gate, temperature=0.1
    ),
    "supervised_contrastive": lambda x: reference.supervised_contrastive(x.features, x.labels, temperature=0.1),
    "cross_entropy_with_margin": lambda x: reference.cross_entropy_with_margin(x.logits, x.labels),
    "kd_kl": lambda x: reference.kd_kl(x.student, x.teacher, temperature=4.0),
    "rkd_distance": lambda x: reference.rkd_distance(x.student, x.teacher),
    "rkd_angle": lambda x: reference.rkd_angle(x.student, x.teacher),
}


@pytest.fixture
def uncompiled(monkeypatch):
    """A compiler that does nothing."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *map(str, arguments)])
    return stopped.value.code


def small(name, dtype="float32"):
    (case,) = FUNCTIONS[name].cases("cpu", [dtype], {"n": [21], "d": [7], "c": [4]})
    return case


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_exact_is_the_definition(name):
    case = small(name)
    x = case.inputs(0, CPU)
    leaves = [getattr(x, field).double().requires_grad_() for field in case.differentiated]
    for field, value in vars(x).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            setattr(x, field, value.double())
    for field, leaf in zip(case.differentiated, leaves, strict=True):
        setattr(x, field, leaf)
    outputs = DEFINITIONS[name](x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    expected = [*outputs, *torch.autograd.grad(outputs[0], leaves)]
    exact = exact_results(case, CPU)
    assert [*exact] == [*case.outputs, *(f"gradient of {field}" for field in case.differentiated)]
    for computed, true in zip(exact.values(), expected, strict=True):
        torch.testing.assert_close(computed, true.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_everybody_who_can_take_part_is_right(name, dtype):
    case = small(name, dtype)
    exact = exact_results(case, CPU)
    able = [c for c in speed.everybody(case, CPU) if c.checked and c.why_not is None and c.name != "KeOps"]
    # pytorch-metric-learning's own result is of another dtype there.
    able = [c for c in able if dtype == "float32" or c.name != "pytorch-metric-learning"]
    assert {"icckd reference"} < {c.name for c in able}
    for contender in able:
        assert max(errors(case, contender, CPU, exact).values()) < WRONG[dtype], contender.name


def contenders():
    """One of ours and a peer; then one that is wrong, one that raises, one that is missing, and one that is slow."""

    def broken(x):
        raise RuntimeError("out of order")

    right = KD.ours("reference")
    return [
        Contender("icckd reference", right, is_peer=False),
        Contender("peer", lambda x: (time.sleep(0.005), right(x))[1]),
        Contender("wrong", lambda x: 1.01 * right(x)),
        Contender("broken", broken),
        Contender("missing", right, why_not="nothing is not installed (pip install nothing)"),
        Contender("slow", lambda x: (time.sleep(1.1), right(x))[1]),
    ]


def test_rows_say_what_was_measured_and_why_the_others_were_not(monkeypatch):
    monkeypatch.setattr(speed, "_TOO_SLOW", 1.0)
    rows = speed.measure_case(KD, contenders(), CPU, seconds=0)
    timed = {(row["contender"], row["mode"]): row for row in rows if "mode" in row}
    assert timed.keys() == {("icckd reference", "step"), ("icckd reference", "forward"), ("peer", "step")}
    keys = {"case", "n", "c", "dtype", "device", "processor", "threads", "icckd", "torch", "commit", "date", "error"}
    assert all(keys <= row.keys() for row in rows)
    for row in timed.values():
        assert 0 < row["q20_ms"] <= row["median_ms"] <= row["q80_ms"]
        assert row["fraction_of_floor"] == pytest.approx(row["floor_ms"] / row["median_ms"])
    ours, peer = timed["icckd reference", "step"], timed["peer", "step"]
    assert ours["times_faster_than_best_peer"] == pytest.approx(peer["median_ms"] / ours["median_ms"])
    assert timed["icckd reference", "forward"]["times_faster_than_best_peer"] is None
    why_not = {row["contender"]: row["why_not"] for row in rows if "why_not" in row}
    assert why_not.keys() == {"wrong", "broken", "missing", "slow"}
    assert why_not["wrong"].startswith("wrong: off by 1")
    assert why_not["broken"] == "RuntimeError: out of order"
    assert why_not["slow"].startswith("one call takes")


def test_the_floor_is_the_slower_of_copy_and_product_and_in_proportion_for_the_loss_alone(monkeypatch):
    case = small("rkd_distance", "bfloat16")
    assert {*floor_calls(case, CPU)} == {"floor: copy", "floor: product in bfloat16", "floor: product in float32"}
    assert floor_calls(small("rkd_angle"), CPU) == {}
    medians = {"floor: copy": 3.0, "floor: product in bfloat16": 9.0, "floor: product in float32": 6.0}
    assert floor_of(case, medians, backward=True) == (6.0, "product")
    assert floor_of(case, medians, backward=False) == (pytest.approx(4.0), "product")
    assert floor_of(case, medians | {"floor: copy": 7.0}, backward=True) == (7.0, "copy")
    assert floor_of(case, {}, backward=True) == (None, None)
    assert described(Work(268_435_456, None), "copy") == "a copy that moves 268 MB"
    assert described(Work(None, 1_290_000_000), "product") == "a matrix product of 1.29 GFLOP"


def test_the_floor_moves_and_multiplies_what_the_case_must():
    case = small("rkd_distance")
    work = case.work(backward=True)
    calls = floor_calls(case, CPU)
    assert 2 * calls["floor: copy"](0).numel() == pytest.approx(work.bytes, abs=2)
    assert 2 * len(calls["floor: product in float32"](0)) ** 3 == pytest.approx(work.flop, rel=0.1)


@pytest.mark.usefixtures("uncompiled")
def test_the_quick_run_of_everything_prints_and_writes_everything(tmp_path, capsys):
    files = [tmp_path / name for name in ("rows.json", "rows.csv", "bars.png")]
    written = [
        argument for name, file in zip(("json", "csv", "plot"), files, strict=True) for argument in (f"--{name}", file)
    ]
    assert run("--quick", "--device", "cpu", "--threads", torch.get_num_threads(), *written) == 0
    printed = capsys.readouterr().out
    rows = json.loads(files[0].read_text())
    assert {row["function"] for row in rows} == {*FUNCTIONS}
    for name in FUNCTIONS:
        assert f"{name}, float32, N = 64" in printed
    for contender in ("icckd reference", "F.cross_entropy + eager margin", "F.kl_div", "padded bmm"):
        assert f"\n    {contender} " in printed
    assert "here: " in printed
    table = list(csv.DictReader(files[1].open()))
    assert [row["contender"] for row in table] == [row["contender"] for row in rows]
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {file.name for file in files}


@pytest.mark.usefixtures("uncompiled")
def test_every_combination_of_sizes_is_measured_and_drawn_as_curves(tmp_path):
    sizes = ["--rows", 4, 8, "--classes", 3, 5, 9, "--dtype", "float32", "bfloat16"]
    outputs = ["--json", tmp_path / "rows.json", "--plot", tmp_path / "curves.svg"]
    assert run("kd_kl", "--device", "cpu", *sizes, "--seconds", "1e-9", *outputs) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    measured = {(row["dtype"], row["n"], row["c"]) for row in rows if row["contender"] == "icckd reference"}
    assert measured == {(dtype, n, c) for dtype in ("float32", "bfloat16") for n in (4, 8) for c in (3, 5, 9)}
    assert "<svg" in (tmp_path / "curves.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kd"], "did you mean kd_kl?"),
        (["--rows", "0"], "--rows is 0; it should be 1 or more"),
        (["--classes", "10", "-3"], "--classes is -3"),
        (["--rows", "many"], "--rows"),
        (["--dtype", "float64"], "--dtype is float64; on this cpu"),
        (["--rows", "1000000", "--classes", "1000000"], "takes about 48,000 GB"),
        (["--json", "nowhere/rows.json"], "there is no folder nowhere"),
        (["--csv", "."], "is a folder"),
        (["--plot", "bars.txt"], "should end in .png, .svg, .pdf"),
        (["--against", "abacus"], "should be one of none, cpu, h100"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--threads", "0"], "--threads is 0"),
        (["--row", "5"], "unrecognized arguments: --row"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
        pytest.param(
            ["--device", "cuda"],
            "finds no CUDA device here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_measured(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "measure_case", None)
    device = [] if "--device" in arguments else ["--device", "cpu"]
    assert run(*arguments, *device) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("icckd: error: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_nothing_can_be_written_is_found_out_first(monkeypatch, capsys, tmp_path):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(options.tempfile, "TemporaryFile", refuse)
    assert run("--device", "cpu", "--json", tmp_path / "rows.json") == 2
    assert "nothing can be written there: Permission denied" in capsys.readouterr().err


def test_a_peer_is_not_tried_beyond_what_is_left_of_the_memory(monkeypatch):
    monkeypatch.setattr("icckd.bench.case.free_memory", lambda device: 1e9)
    assert too_large(2e8, 4, CPU) == "it would take about 1 GB"
    assert too_large(1.5e8, 4, CPU) is None


def test_the_recordings_are_those_of_the_results():
    expected = recording_script.recordings()
    assert recorded.names() == sorted(expected)
    for name, text in expected.items():
        path = Path(recorded.__file__).with_name(f"{name}.json")
        assert path.read_text(encoding="utf-8") == text, "python -m bench.recorded writes it anew"


def test_a_recording_keeps_the_numbers_of_its_rows():
    source = json.loads((recording_script.RESULTS / recording_script.SOURCES["h100"]).read_text())
    wanted = {row["case"] for row in source if row.get("mode") == "step" and row["contender"] == "icckd triton"}
    for case in wanted:
        (row,) = (
            r for r in recorded.load("h100").of_case(case) if (r["contender"], r["mode"]) == ("icckd triton", "step")
        )
        (original,) = (
            r for r in source if (r["case"], r["contender"], r.get("mode")) == (case, "icckd triton", "step")
        )
        for key in ("median_ms", "q20_ms", "q80_ms", "fraction_of_floor"):
            assert row[key] == pytest.approx(original[key], rel=1e-3)
        assert row["processor"] == original["processor"]
        assert row["date"][:10] == original["date"][:10]
        assert row["recorded"] == "h100"
    assert {row["family"] for row in recorded.load("h100").rows} == {
        "intra_class",
        "cross_entropy",
        "kd_kl",
        "relational",
    }


def test_rows_of_different_machines_are_no_recording():
    row = {"family": "kd_kl", "is_peer": True, "mode": "step", **dict.fromkeys(recording_script._CONDITIONS, "x")}
    row |= dict.fromkeys(recording_script._NUMBERS, 1.0) | {"case": "kd_kl", "contender": "F.kl_div"}
    assert len(recording_script.compact([row, row])["rows"]) == 2
    with pytest.raises(ValueError, match="processor"):
        recording_script.compact([row, {**row, "processor": "y"}])


@pytest.fixture
def machines(tmp_path, monkeypatch):
    """Two recorded machines with a CPU: of "first" 16 rows are recorded, of "second" 8 rows."""
    conditions = {"device": "cpu", "processor": "Abacus", "threads": 3, "icckd": "0.1.0", "torch": "2.13"}
    conditions |= {"python": "3.12", "triton": None, "commit": "0123abc", "date": "2026-01-02T00:00:00"}
    (tmp_path / "recorded").mkdir()
    for name, n in (("first", 16), ("second", 8)):
        row = {"family": "kd_kl", "case": f"kd_kl float32 n={n} c=5", "n": n, "c": 5, "dtype": "float32"}
        times = {"median_ms": 123.0, "q20_ms": 120.0, "q80_ms": 130.0}
        times |= dict.fromkeys(("floor_ms", "fraction_of_floor", "times_faster_than_best_peer"), 0.5)
        rows = [
            {**row, **times, "contender": "F.kl_div", "is_peer": True, "mode": "step"},
            {**row, **times, "contender": "of old", "is_peer": True, "mode": "step", "median_ms": 456.0},
        ]
        text = json.dumps({"conditions": conditions, "rows": rows})
        (tmp_path / "recorded" / f"{name}.json").write_text(text)
    monkeypatch.setattr(recorded, "_FOLDER", tmp_path / "recorded")
    recorded.load.cache_clear()
    yield
    recorded.load.cache_clear()


@pytest.mark.usefixtures("uncompiled", "machines")
@pytest.mark.parametrize(
    ("against", "said", "not_said"),
    [
        ([], "second, ms", "first"),
        (["--against", "first"], "first has no rows of this dtype and these sizes", "second"),
        (["--against", "none"], "here: ", "recorded on"),
    ],
)
def test_a_recorded_machine_of_the_same_kind_and_sizes_stands_beside(against, said, not_said, capsys, tmp_path):
    arguments = ["kd_kl", "--device", "cpu", "--rows", 8, "--classes", 5, "--seconds", "1e-9"]
    assert run(*arguments, "--json", tmp_path / "rows.json", *against) == 0
    printed = capsys.readouterr().out
    assert said in printed
    assert not_said not in printed
    rows = json.loads((tmp_path / "rows.json").read_text())
    beside = [(row["recorded"], row["contender"], row["processor"]) for row in rows if row["recorded"]]
    if against:
        assert beside == []
        return
    assert beside == [("second", name, "Abacus") for name in ("F.kl_div", "of old")]
    lines = {line.split("  ")[2]: line for line in printed.splitlines() if line.startswith("    ")}
    assert lines["F.kl_div"].endswith(" 123")
    assert lines["of old"].split()[2:] == ["–", "–", "–", "–", "–", "456"]
    assert "second: recorded on Abacus, 3 threads, torch 2.13, icckd 0.1.0 at commit 0123abc, 2026-01-02" in printed


def test_definitions_need_neither_the_trainer_nor_its_packages():
    """So that `bench.gpu` runs where there are only PyTorch, Triton and NumPy."""
    code = """
import importlib, pkgutil, sys
for name in ("icckd._C", "jsonargparse", "matplotlib", "rich", "yaml", "safetensors", "sklearn"):
    sys.modules[name] = None
import icckd.bench
for module in pkgutil.walk_packages(icckd.bench.__path__, "icckd.bench."):
    if module.name not in ("icckd.bench.command", "icckd.bench.plot"):
        importlib.import_module(module.name)
trainer = ("icckd.cli", "icckd.experiment", "icckd.training", "icckd.settings", "icckd.methods", "icckd.models")
assert not [name for name in sys.modules if name.startswith(trainer)]
"""
    subprocess.run([sys.executable, "-c", code], cwd=recording_script._ROOT, check=True, timeout=120)
