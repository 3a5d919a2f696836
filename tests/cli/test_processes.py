"""The command line of several processes: started together, told of once, ended together, continued."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from icckd.training import Training
from tests.distributed.jobs import Job, command, free_port, icckd
from tests.distributed.processes import needs_gloo

pytestmark = needs_gloo
SHORT = [
    *("--teacher.arch", "resnet8", "--teacher.epochs", "2", "--teacher.warmup_epochs", "0.5"),
    *("--teacher.batch_size", "64", "--data.train_fraction", "0.4", "--checkpoint_every", "1"),
]


def records(output):
    """The lines of metrics.jsonl but for what the clock says."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def assert_same_run(one, other):
    assert records(one) == records(other)
    first, second = (load_file(path / "teacher/model.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "variables", "line"),
    [
        (["run", "--teacher.epoch", 3], {}, "--teacher.epoch is no option; write in full which is meant"),
        (["run", "--teacher.epochs", "x"], {}, "teacher.epochs"),
        (["doctor"], {}, "icckd doctor is the work of one process, and torchrun started 2; start it without"),
        (["compare", "--output", "x"], {}, "icckd compare is the work of one process, and torchrun started 2"),
        (["run"], {"TORCHELASTIC_MAX_RESTARTS": "2"}, "--output is not given, and torchrun may start this again"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path, arguments, variables, line):
    job = icckd(tmp_path, *arguments, variables=variables)
    assert job.codes() == [2, 2]
    (found,) = job.errors()
    assert found.startswith("icckd: error: ")
    assert line in found


def with_own_seed(rank, folder, size, port, arguments, variables):
    """As `command`, each process with another seed."""
    command(rank, folder, size, port, [*arguments, "--seed", rank], variables)


def test_other_settings_than_the_firsts_are_refused(tmp_path):
    job = icckd(tmp_path, "teacher", *SHORT, "--output", "run", part=with_own_seed)
    assert job.codes() == [2, 2]
    (line,) = job.errors()
    assert "rank 1 of 2 processes" in line
    assert line.endswith("seed is 1, but 0 in the first process; give all the same settings")
    assert not (tmp_path / "run").exists()


def slowed(rank, *arguments):
    """As `command`, with a word on every step of the first process."""
    step = Training.train_step

    def told(training, batch):
        if rank == 0:
            print(f"step {training.epoch}.{training.step}", flush=True)
        time.sleep(0.1)
        return step(training, batch)

    Training.train_step = told
    command(rank, *arguments)


def test_a_signal_to_one_process_stops_all_and_a_restart_continues(tmp_path):
    job = icckd(tmp_path, "teacher", *SHORT, part=slowed)
    job.wait_for("step 1.1")
    os.kill(job.processes[1].pid, signal.SIGTERM)
    assert job.codes() == [143, 143]
    assert job.errors() == ["icckd: stopped by signal 15 after saving a checkpoint; --resume continues"]
    (output,) = (tmp_path / "runs").iterdir()
    begun = records(output)
    assert len(begun) == 1
    # As a launcher does: with the arguments of before.
    restart = ["teacher", *SHORT, "--output", output, "--overwrite"]
    again = icckd(tmp_path, *restart, variables={"TORCHELASTIC_RESTART_COUNT": "1"})
    assert again.codes() == [0, 0], again.errors()
    assert records(output)[:1] == begun
    # The first alone writes and speaks.
    assert {path.name for path in output.iterdir()} == {
        *("config.yaml", "inputs.json", "metrics.jsonl", "summary.json", "report.html", "report.md", "teacher")
    }
    assert (tmp_path / "stdout-1").read_text() == ""
    assert "epoch" not in (tmp_path / "stderr-1").read_text()
    assert [line for line in (tmp_path / "stderr-0").read_text().splitlines() if line.startswith("teacher epoch 2/2 ")]
    told = again.output()
    assert told[0].startswith("teacher: accuracy ")
    assert told[1:] == [f"report: {output / 'report.html'}"]


def killed(rank, folder, size, port, arguments, variables, victim, last):
    """As `command`; `victim` is killed as its run begins step `last`, counted from 0 over all epochs."""
    step = Training.train_step

    def counted(training, batch):
        taken = training.epoch * len(training.batches) + training.step
        print(f"step {taken}", flush=True)
        if rank == victim and taken >= last:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(training, batch)

    Training.train_step = counted
    command(rank, folder, size, port, arguments, variables)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_killed_at_random_steps_it_loses_an_interval_at_most(tmp_path, size):
    seed = random.randrange(10**6)
    print(f"the kills: seed {seed}")
    chance, interval = random.Random(seed), 7
    settings = [
        *("--teacher.arch", "resnet8", "--teacher.epochs", 8, "--teacher.memory.capacity", 4),
        *("--data.train_fraction", 0.5, "--checkpoint_every", interval, "--output", "run", "--resume"),
    ]
    whole = icckd(tmp_path / "whole", "teacher", *settings, size=size)
    assert whole.codes() == [0] * size, whole.errors()
    steps_an_epoch = records(tmp_path / "whole/run")[0]["step"]
    folder, step = tmp_path / "killed", 0
    for _ in range(6):
        victim, step = chance.randrange(size), step + chance.randrange(1, 14)
        job = Job(folder, size, killed, str(folder), size, free_port(), ["teacher", *settings], {}, victim, step)
        job.processes[victim].join(60)
        began = time.monotonic()
        codes = job.codes()
        assert time.monotonic() - began < 5
        assert codes == [-signal.SIGKILL if rank == victim else 1 for rank in range(size)], job.errors()
        (line,) = job.errors()
        assert f"rank {victim} of {size} processes" in line
        assert "is gone" in line
        state = torch.load(folder / "run/teacher/checkpoint/state.pt", weights_only=True)
        assert step - interval <= state["epoch"] * steps_an_epoch + state["step"] <= step
    last = icckd(folder, "teacher", *settings, size=size)
    assert last.codes() == [0] * size, last.errors()
    assert [record["epoch"] for record in records(folder / "run")] == list(range(1, 9))
    if size == 2:  # DistributedDataParallel may add up three numbers in another order after its first step.
        assert_same_run(folder / "run", tmp_path / "whole/run")


@pytest.mark.slow
def test_torchrun_restarts_and_the_run_goes_on(tmp_path):
    output = tmp_path / "run"
    started = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("--max-restarts", "1", "-m", "icckd", "teacher", *SHORT, "--teacher.epochs", "20"),
            *("--output", output),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (output / "metrics.jsonl").exists():
        assert started.poll() is None
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(started.pid)], capture_output=True, text=True, check=True)
    victim = int(children.stdout.split()[-1])
    os.kill(victim, signal.SIGKILL)
    _, err = started.communicate(timeout=120)
    assert started.returncode == 0, err
    told = [line for line in err.splitlines() if line.startswith("icckd: ")]
    assert len(told) == 1, told
    assert f"pid {victim}) is gone" in told[0]
    assert [record["epoch"] for record in records(output)] == list(range(1, 21))
    assert err.count(" 1/20 ") == 1
