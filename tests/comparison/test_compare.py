"""Comparisons on the built-in digits, as short as they can be, from the command line to the files."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy import stats

from icckd.cli import main
from icckd.comparison import ComparisonFolder, Run, Shard, compare
from icckd.experiment import (
    FINE_NUMBERS,
    NUMBERS,
    ROBUST_NUMBERS,
    SWAP_NUMBERS,
    TAUGHT_NUMBERS,
    TRAINING_NUMBERS,
    Experiment,
    RunFolder,
)
from icckd.settings import comparison_from
from tests.distributed.jobs import icckd

SHORT = {"arch": "convnet-small", "epochs": 1, "batch_size": 256, "warmup_epochs": 0}
DEFINITION = {
    "base": {"teacher": SHORT, "student": SHORT},
    "variants": {"kd": {"student.loss.method": "kd"}, "none": {"student.loss.method": "none"}},
    "baseline": "none",
    "seeds": [0, 1],
    "metrics": ["student.test_accuracy", "teacher.distance_ratio"],
}
TEACHERS = {
    **DEFINITION,
    "variants": {"calm": {}, "wild": {"teacher.learning_rate": 1e30}},
    "baseline": "calm",
    "metrics": ["teacher.test_accuracy"],
}


def write(path, **changes):
    path.write_text(yaml.safe_dump({**DEFINITION, **changes}, sort_keys=False))
    return path


def run(*arguments):
    """`icckd compare` in this process; its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, arguments)])
    return stopped.value.code


def process(*arguments):
    """`icckd compare` in a process of its own, a group of its own, and with as many threads as this one."""
    return subprocess.Popen(
        [sys.executable, "-m", "icckd", "compare", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path, pattern, process=None):
    """The first file of that pattern, once there is one."""
    for _ in range(1200):
        found = sorted(path.glob(pattern))
        if found:
            return found[0]
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {path}")


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def error_line(capsys):
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("icckd: error: ")
    return line


def assert_same_network(run_a, run_b, stage):
    first, second = (load_file(Path(path) / stage / "model.safetensors") for path in (run_a, run_b))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison, made once: its folder, and what was told on the way."""
    folder = tmp_path_factory.mktemp("comparison")
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("icckd.comparison.progress.say", told.append)
        code = run("--config", write(folder / "c.yaml"), "--output", folder / "all")
    assert code == 0
    return folder / "all", told


@pytest.fixture
def summaries(finished, tmp_path):
    """The definition and the summaries alone of that comparison."""
    for path in (finished[0] / "runs").rglob("summary.json"):
        target = tmp_path / "kept" / path.relative_to(finished[0])
        target.parent.mkdir(parents=True)
        shutil.copy(path, target)
    shutil.copy(finished[0] / "compare.yaml", tmp_path / "kept")
    return tmp_path / "kept"


def test_every_run_is_an_ordinary_run_and_is_told_of_in_order(finished):
    folder, told = finished
    assert [line.split()[:2] for line in told] == [
        ["1/4", "kd/0"],
        ["2/4", "none/0"],
        ["3/4", "kd/1"],
        ["4/4", "none/1"],
    ]
    assert "student.test_accuracy 0." in told[0]
    assert "3 left, ends about " in told[0]
    assert "left" not in told[3]
    for name in ("compare.yaml", "compare.json", "compare.csv", "compare.md", "compare.html"):
        assert (folder / name).is_file()
    for name in ("kd/0", "none/0", "kd/1", "none/1"):
        names = {path.name for path in (folder / "runs" / name).iterdir()}
        assert names >= {"config.yaml", "inputs.json", "metrics.jsonl", "summary.json", "report.html", "report.md"}
        lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["stage"] for line in lines] == ["teacher", "student"]


def test_a_teacher_in_common_is_trained_once_and_is_what_training_it_again_gives(finished, tmp_path):
    folder, _ = finished
    assert (folder / "runs/kd/1/teacher/checkpoint").exists()
    assert not (folder / "runs/none/1/teacher/checkpoint").exists()
    settings = ComparisonFolder(folder).read().settings("none", 1)
    summary = Experiment(settings).run(RunFolder(tmp_path / "run"))
    kept = json.loads((folder / "runs/none/1/summary.json").read_text())
    for stage in ("teacher", "student"):
        assert_same_network(folder / "runs/none/1", tmp_path / "run", stage)
        assert kept[stage]["per_class_accuracy"] == summary[stage]["per_class_accuracy"]
    inputs = [(path / "inputs.json").read_text() for path in (folder / "runs/none/1", tmp_path / "run")]
    assert inputs[0] == inputs[1]


def test_a_folder_with_runs_is_refused_and_left_as_it_is(finished, tmp_path, capsys):
    folder, _ = finished
    before = contents(folder)
    config = write(tmp_path / "c.yaml")
    for arguments, message in (
        ([], "add --resume to continue it"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--overwrite", "--shard", "0/2"], "without --shard"),
        (["--resume", "--teacher.epochs", "2"], "teacher.epochs is 2, but the run in"),
        (["--resume", "--jobs", "0"], "--jobs is 0"),
        (["--resume", "--processes", "0"], "--processes is 0"),
        (["--seed", "3"], "--seeds"),
        (["--seeds", "3-1"], "--seeds holds 3-1"),
        (["--shard", "2/2"], "--shard is '2/2'"),
        (["--resume", "--teacher.weight", "x"], "--teacher.weights"),
    ):
        assert run("--config", config, "--output", folder, *arguments) == 2
        assert message in error_line(capsys)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("student.test_accurcy", "did you mean test_accuracy?"),
        ("teacher.x", "it has test_accuracy,"),
        ("teacher.fine_probe", "which runs with data.labels fine, such as kd, do not have: give coarse"),
        (
            "student.robust_accuracy",
            "which runs with evaluation.attack null, such as kd, do not have: give fgsm or pgd",
        ),
        (
            "teacher.training_accuracy",
            "which runs with evaluation.training_images 0, such as kd, do not have: give a number",
        ),
        ("teacher.neighbour_agreement", "which only students have; give student.neighbour_agreement"),
        ("teacher.swap_accuracy", "which only teachers with teacher.loss.method spectrum have"),
    ],
)
def test_a_metric_that_no_summary_has_is_refused_before_anything_is_trained(tmp_path, capsys, metric, words):
    definition = write(tmp_path / "compare.yaml", metrics=[metric])
    assert run("--config", definition, "--output", tmp_path / "out") == 2
    assert words in error_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fewer", [["--seeds", "1"], ["--config", "one.yaml"]])
def test_a_comparison_loses_no_run_that_is_there(summaries, fewer, tmp_path, capsys):
    variants = {name: of for name, of in DEFINITION["variants"].items() if name != "kd"}
    write(tmp_path / "one.yaml", variants={**variants, "new": {"student.loss.method": "dkd"}})
    fewer = [str(tmp_path / word) if word.endswith(".yaml") else word for word in fewer]
    before = contents(summaries)
    assert run("--output", summaries, "--resume", *fewer) == 2
    assert "would lose kd/0, which is there" in error_line(capsys)
    assert contents(summaries) == before


def test_what_is_broken_in_a_finished_run_is_found_before_anything_is_trained(summaries, capsys):
    shutil.rmtree(summaries / "runs/none/1")
    (summaries / "runs/kd/0/metrics.jsonl").write_text('{"bro')
    before = contents(summaries)
    assert run("--output", summaries, "--resume") == 2
    assert "metrics.jsonl: line 1 is not readable JSON" in error_line(capsys)
    assert contents(summaries) == before


def test_the_numbers_of_a_summary_are_those_that_can_be_compared(finished):
    summary = json.loads((ComparisonFolder(finished[0]).run(Run("kd", 0)).summary).read_text())
    for stage in ("teacher", "student"):
        found = {name for name, value in summary[stage].items() if isinstance(value, (int, float))}
        missing = {*FINE_NUMBERS, *ROBUST_NUMBERS, *SWAP_NUMBERS, *TRAINING_NUMBERS}
        assert found == set(NUMBERS) - (missing if stage == "student" else {*missing, *TAUGHT_NUMBERS})


def test_intervals_are_those_that_scipy_computes_from_the_summaries(finished):
    results = json.loads((finished[0] / "compare.json").read_text())
    for metric in DEFINITION["metrics"]:
        stage, name = metric.split(".")
        values = {
            variant: [
                json.loads((finished[0] / "runs" / variant / seed / "summary.json").read_text())[stage][name]
                for seed in ("0", "1")
            ]
            for variant in ("kd", "none")
        }
        found = results["differences"]["kd"][metric]
        if metric == "teacher.distance_ratio":  # One teacher for both.
            assert (found["mean"], found["low"], found["high"], found["p"]) == (0, 0, 0, None)
            continue
        test = stats.ttest_rel(values["kd"], values["none"])
        interval = test.confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
        assert found["p"] == pytest.approx(test.pvalue)


def test_what_is_missing_is_named(tmp_path, capsys):
    for arguments, message in (
        (["--output", tmp_path / "new"], "--config"),
        (["--output", tmp_path / "new", "--resume"], "--config"),
        (["--config", write(tmp_path / "c.yaml")], "--output"),
        (["--config", tmp_path / "none.yaml", "--output", tmp_path / "new"], "none.yaml"),
    ):
        assert run(*arguments) == 2
        assert message in error_line(capsys)
    assert not (tmp_path / "new").exists()


def test_overwrite_spares_what_is_no_comparisons(tmp_path, capsys):
    (tmp_path / "runs" / "20260101" / "1").mkdir(parents=True)
    (tmp_path / "runs" / "20260101" / "1" / "summary.json").write_text("{}")
    before = contents(tmp_path)
    assert run("--config", write(tmp_path.parent / "c.yaml"), "--output", tmp_path, "--overwrite") == 2
    assert "holds no comparison" in error_line(capsys)
    assert contents(tmp_path) == before


def test_overwriting_removes_runs_and_results_only(finished, tmp_path):
    folder = ComparisonFolder(tmp_path / "copy")
    shutil.copytree(finished[0], folder.path)
    (folder.path / "runs" / "kd" / "0" / "mine.txt").write_text("mine")
    (folder.path / "runs" / "notes").mkdir()
    folder.open(folder.read(), overwrite=True)
    assert set(contents(folder.path)) == {"compare.yaml", "runs/kd/0/mine.txt"}
    assert not (folder.path / "runs" / "none").exists()


def test_summaries_alone_are_finished_runs(finished, summaries, capsys):
    assert run("--output", summaries, "--resume", "--jobs", "2") == 0
    assert "all 4 runs are finished" in capsys.readouterr().out
    assert (summaries / "compare.json").read_bytes() == (finished[0] / "compare.json").read_bytes()
    assert {path.name for path in (summaries / "runs").rglob("*") if path.is_file()} == {"summary.json"}


def test_settings_that_changed_are_noticed_where_only_config_and_summary_are_left(finished, summaries, capsys):
    shutil.copy(finished[0] / "runs/kd/0/config.yaml", summaries / "runs/kd/0")
    assert run("--output", summaries, "--resume", "--student.epochs", "2") == 2
    assert "student.epochs is 2, but the run in" in error_line(capsys)


def test_a_summary_that_lacks_a_stage_and_is_all_there_is_cannot_be_continued(summaries, capsys):
    path = summaries / "runs/kd/1/summary.json"
    path.write_text(json.dumps({"teacher": json.loads(path.read_text())["teacher"]}))
    assert run("--output", summaries, "--resume") == 2
    assert "runs/kd/1/config.yaml is missing" in error_line(capsys)


def test_report_writes_the_pages_again(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "copy")
    for name in ("compare.html", "compare.md", "compare.json"):
        (tmp_path / "copy" / name).unlink()
    with pytest.raises(SystemExit) as stopped:
        main(["report", "--output", str(tmp_path / "copy")])
    assert stopped.value.code == 0
    assert (tmp_path / "copy" / "compare.json").read_bytes() == (finished[0] / "compare.json").read_bytes()
    assert "page: " in capsys.readouterr().out


def test_two_shards_that_start_together_in_an_empty_folder_end_as_one_run(finished, tmp_path):
    comparison = ComparisonFolder(finished[0]).read()
    shards = [
        threading.Thread(target=compare, args=(comparison, tmp_path), kwargs={"shard": Shard(index, 2)})
        for index in range(2)
    ]
    for shard in shards:
        shard.start()
    for shard in shards:
        shard.join()
    for name in ("compare.json", "compare.csv", "compare.yaml"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()
    for name in ("kd/0", "none/0", "kd/1", "none/1"):
        assert_same_network(finished[0] / "runs" / name, tmp_path / "runs" / name, "student")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("flag", [[], ["--overwrite"]])
def test_a_wrong_setting_of_the_last_variant_costs_nothing(finished, tmp_path, capsys, flag):
    wrong = {**DEFINITION["variants"], "last": {"student.batch_size": 100_000}}
    config = write(tmp_path / "c.yaml", variants=wrong)
    output = finished[0] if flag else tmp_path / "new"
    before = contents(output)
    assert run("--config", config, "--output", output, *flag) == 2
    assert "last: student.batch_size is 100000, more than the 1438 to train on" in error_line(capsys)
    assert contents(output) == before


def test_divergence_stops_no_other_run_and_is_exit_3(tmp_path, capsys):
    config, command = write(tmp_path / "c.yaml", **TEACHERS), ("--output", tmp_path / "out", "--jobs", "2")
    assert run("--config", config, *command, "--seeds", "0") == 3
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert line.startswith("icckd: error: wild/0 failed; wild/0: the teacher's training diverged: ")
    assert "1 of 2 runs" in printed.out
    summary = json.loads((tmp_path / "out/runs/calm/0/summary.json").read_text())
    assert "student" not in summary
    assert summary["environment"]["threads"] == max(1, torch.get_num_threads() // 2)
    assert not (tmp_path / "out/runs/wild/0/summary.json").exists()
    assert not (tmp_path / "out/runs/calm/0/student").exists()


@pytest.mark.slow
def test_a_worker_that_is_killed_stops_no_other_run(tmp_path, capsys):
    config = write(tmp_path / "c.yaml", **{**TEACHERS, "variants": {"a": {"teacher.epochs": 500}, "calm": {}}})

    def kill():
        wait_for(tmp_path, "out/runs/a/0/teacher/checkpoint/state.pt")
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert run("--config", config, "--output", tmp_path / "out", "--seeds", "0") == 2
    killer.join()
    assert "a/0 failed; a/0: its process was ended by SIGKILL" in error_line(capsys)
    assert (tmp_path / "out/runs/calm/0/summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_saves_every_checkpoint_and_resume_goes_on(tmp_path, group):
    config = write(tmp_path / "c.yaml", **{**TEACHERS, "variants": {"calm": {}}, "seeds": [0]})
    settings = ["--teacher.epochs", 100, "--checkpoint_every", 0]
    started = process("--config", config, "--output", tmp_path / "out", *settings)
    wait_for(tmp_path, "out/runs/calm/0/metrics.jsonl", started)
    (os.killpg if group else os.kill)(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert err.splitlines()[-1] == "icckd: stopped by signal 2 after saving a checkpoint; --resume continues"
    assert "Traceback" not in err
    state = torch.load(tmp_path / "out/runs/calm/0/teacher/checkpoint/state.pt", weights_only=True)
    lines = (tmp_path / "out/runs/calm/0/metrics.jsonl").read_text().splitlines()
    assert state["epoch"] == len(lines)
    assert 0 < state["epoch"] < 100
    assert run("--config", config, "--output", tmp_path / "out", *settings, "--resume") == 0
    continued = (tmp_path / "out/runs/calm/0/metrics.jsonl").read_text().splitlines()
    assert len(continued) == 100
    assert continued[: len(lines)] == lines


@pytest.mark.slow
def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path):
    config = write(tmp_path / "c.yaml", **{**TEACHERS, "variants": {"calm": {}}, "seeds": [0]})
    started = process("--config", config, "--output", tmp_path / "out", "--teacher.epochs", 100_000)
    wait_for(tmp_path, "out/runs/calm/0/metrics.jsonl", started)
    started.kill()
    started.wait()
    assert_all_end(started.pid)


def assert_all_end(group):
    """No process of the group is left, soon."""
    for _ in range(600):
        if not _group_lives(group):
            break
        time.sleep(0.05)
    assert not _group_lives(group)


def _group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_runs_of_several_processes_are_those_of_a_launcher(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # One each.
    config = write(tmp_path / "c.yaml", **TEACHERS)
    command = ["--config", config, "--output", tmp_path / "out", "--seeds", "0", "--processes", "2"]
    assert run(*command) == 3
    line = error_line(capsys)
    assert line.startswith("icckd: error: wild/0 failed; wild/0: the teacher's training diverged: ")
    settings = [word for name, value in SHORT.items() for word in (f"--teacher.{name}", value)]
    job = icckd(tmp_path, "teacher", *settings, "--output", "launched")
    assert job.codes() == [0, 0], job.errors()
    assert_same_network(tmp_path / "launched", tmp_path / "out/runs/calm/0", "teacher")


@pytest.mark.slow
@pytest.mark.parametrize("of_worker", [False, True])
def test_a_process_of_a_run_that_is_killed_fails_that_run_only(tmp_path, of_worker):
    config = write(tmp_path / "c.yaml", **{**TEACHERS, "variants": {"a": {"teacher.epochs": 5000}, "calm": {}}})
    started = process("--config", config, "--output", tmp_path / "out", "--seeds", "0", "--processes", "2")
    wait_for(tmp_path, "out/runs/a/0/metrics.jsonl", started)
    (worker,) = children(started.pid)
    (other,) = children(worker)
    os.kill(worker if of_worker else other, signal.SIGKILL)
    _, err = started.communicate(timeout=300)
    assert started.returncode == 2
    reason = "its process was ended by SIGKILL" if of_worker else "rank 1 of 2 processes"
    last = err.splitlines()[-1]
    assert last.startswith(f"icckd: error: a/0 failed; a/0: {reason}")
    assert of_worker or f"pid {other}) is gone" in last
    assert (tmp_path / "out/runs/calm/0/summary.json").exists()
    assert_all_end(started.pid)


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_stops_runs_of_several_processes_in_good_order(tmp_path, group):
    config = write(tmp_path / "c.yaml", **{**TEACHERS, "variants": {"calm": {}}})
    settings = ["--seeds", "0", "--processes", "2", "--teacher.epochs", 5000]
    started = process("--config", config, "--output", tmp_path / "out", *settings)
    wait_for(tmp_path, "out/runs/calm/0/metrics.jsonl", started)
    (os.killpg if group else os.kill)(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=300)
    assert started.returncode == 130, err
    assert err.splitlines()[-1] == "icckd: stopped by signal 2 after saving a checkpoint; --resume continues"
    assert "Traceback" not in err
    assert_all_end(started.pid)


def children(process):
    """The processes that `process` started, but for Python's own tracker."""
    found = subprocess.run(
        ["pgrep", "-P", str(process), "-f", "spawn_main"], capture_output=True, text=True, check=True
    )
    return [int(word) for word in found.stdout.split()]


def test_the_file_that_help_shows_is_one(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    example = text[text.index("  base: ") : text.index("\nSettings on the command line")]
    comparison = comparison_from(yaml.safe_load(example), "help")
    assert comparison.smallest_difference == {"student.test_accuracy": 0.005}
