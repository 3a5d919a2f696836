"""A job of several processes that do next to nothing: what they agree on, and how one ends the others."""

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from icckd.distributed import Launch, World, join
from icckd.errors import Interrupted, TrainingDiverged, UserError
from tests.distributed.jobs import Job
from tests.distributed.processes import needs_gloo

pytestmark = needs_gloo
SIZE = 3
CPU = torch.device("cpu")


def within_a_job(rank, folder, part, *arguments):
    """`part(world, *arguments)` as one of the processes that meet in `folder`."""
    with join(Launch(rank, SIZE, rank), store=dist.FileStore(f"{folder}/store", SIZE)) as world:
        part(world, *arguments)
    print(f"{rank} left", flush=True)


def job(folder, part, *arguments):
    return Job(folder, SIZE, within_a_job, str(folder), part, *arguments)


def wait_in_a_collective(world):
    """Until another process ends: one of them does not take part."""
    print(f"{world.rank} waits", flush=True)
    dist.all_reduce(torch.ones(1))


# --- what they agree on ----------------------------------------------------------------------------------------------


def agree(world):
    assert world.first == (world.rank == 0)
    assert world.group is None
    assert world.from_first(lambda: {"rank": world.rank, "list": [1.5, None]}) == {"rank": 0, "list": [1.5, None]}
    assert world.connect(CPU) == world.connect(CPU) == CPU
    assert dist.get_world_size(world.group) == world.size == SIZE
    assert world.most(10 - world.rank) == 10
    # What is begun first may be read last.
    votes = [world.vote(value * world.rank) for value in (1, 0, 7)]
    assert [vote() for vote in reversed(votes)] == [14, 0, 2]
    made = bytes(range(256)) * 1000
    assert world.bytes_from_first(lambda: made if world.first else b"another") == made
    assert world.bytes_from_first(lambda: b"") == b""
    assert world.from_first(lambda: world.rank) == 0


def test_processes_agree_and_leave_in_silence_also_where_others_met_before(tmp_path):
    # The store of torchrun outlives those that it starts again.
    for _ in range(2):
        started = job(tmp_path, agree)
        assert started.codes() == [0] * SIZE, started.errors()
        assert started.errors() == []
        assert started.output() == [f"{rank} left" for rank in range(SIZE)]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    world = World(Launch(rank=6, size=8, local_rank=2, launcher="torchrun"))
    with pytest.raises(UserError, match="3 processes or more were started on this host, which has 2 GPUs"):
        world.connect(torch.device("cuda"))


LEAVES = """
import sys
from pathlib import Path
import torch
from torch.distributed import FileStore
from icckd.distributed import Launch, World

rank = int(sys.argv[1])
world = World(Launch(rank, 2, rank), FileStore(sys.argv[2], 2))
world.connect(torch.device("cpu"))
__import__("torch._dynamo")
assert world.most(rank) == 1
threads = Path("/proc/self/task").glob
assert any("gloo" in path.read_text() for path in threads("*/comm"))
world.disconnect()
assert not any("gloo" in path.read_text() for path in threads("*/comm"))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads' names are read as Linux tells them")
def test_the_groups_threads_end_with_the_groups(tmp_path):
    # In a fresh interpreter: whether they do depends on what is imported, and when.
    command = [sys.executable, "-c", LEAVES]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE) for rank in (0, 1)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()


# --- one dies --------------------------------------------------------------------------------------------------------


def die(world, victim):
    world.connect(CPU)
    if world.rank == victim:
        if os.fork() == 0:
            time.sleep(20)  # A child must not keep its parent's connections.
            os._exit(0)
        print(f"{world.rank} waits", flush=True)
        time.sleep(20)
    wait_in_a_collective(world)


@pytest.mark.parametrize("victim", range(SIZE))
def test_a_killed_process_ends_the_others_who_wait_for_it(tmp_path, victim):
    started = job(tmp_path, die, victim)
    for rank in range(SIZE):
        started.wait_for(f"{rank} waits")
    began = time.monotonic()
    started.processes[victim].kill()
    assert started.codes() == [-signal.SIGKILL if rank == victim else 1 for rank in range(SIZE)]
    assert time.monotonic() - began < 5
    (line,) = started.errors()
    process = started.processes[victim].pid
    assert line.startswith(
        f"icckd: error: rank {victim} of 3 processes (host {socket.gethostname()}, pid {process}) is gone: killed, or "
        "out of memory"
    )


def fail(world, error):
    world.connect(CPU)
    if world.rank == 1:
        raise error
    wait_in_a_collective(world)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("no such file here"), 2, "no such file here"),
        (TrainingDiverged("it is not finite"), 3, "it is not finite"),
        (ValueError("two\nlines"), 1, "ValueError: two lines (--debug shows where)"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_an_error_of_one_process_is_that_of_all(tmp_path, error, code, text):
    started = job(tmp_path, fail, error)
    assert started.codes() == [code] * SIZE
    (line,) = started.errors()
    named = f"rank 1 of 3 processes (host {socket.gethostname()}, pid {started.processes[1].pid}): {text}"
    assert line == (f"icckd: {named}" if code >= 128 else f"icckd: error: {named}")
    assert started.output() == ["0 waits", "2 waits"]


def fail_alike(world):
    raise UserError("there is no such setting")


def test_what_is_wrong_everywhere_is_said_once(tmp_path):
    started = job(tmp_path, fail_alike)
    assert started.codes() == [2] * SIZE
    assert started.errors() == ["icckd: error: there is no such setting"]


def fail_first(world):
    world.from_first(lambda: fail_alike(world))


def test_what_the_first_finds_wrong_for_all_is_said_without_its_name(tmp_path):
    started = job(tmp_path, fail_first)
    assert started.codes() == [2] * SIZE
    assert started.errors() == ["icckd: error: there is no such setting"]


def be_interrupted(world):
    time.sleep(0.3 * world.rank)  # While the others save, those who are done wait.
    print(f"{world.rank} saved", flush=True)
    raise Interrupted(signal.SIGTERM)


def test_an_interruption_waits_for_all(tmp_path):
    started = job(tmp_path, be_interrupted)
    assert started.codes() == [143] * SIZE
    assert started.output() == ["0 saved", "1 saved", "2 saved"]
    assert started.errors() == ["icckd: stopped by signal 15 after saving a checkpoint; --resume continues"]


def sleep(world):
    print(f"{world.rank} waits", flush=True)
    time.sleep(20)


def test_a_signal_to_all_is_told_once(tmp_path):
    started = job(tmp_path, sleep)
    for rank in range(SIZE):
        started.wait_for(f"{rank} waits")
    for process in started.processes:
        process.terminate()
    assert started.codes() == [143] * SIZE
    assert started.errors() == ["icckd: stopped by signal 15"]


# --- nobody dies -----------------------------------------------------------------------------------------------------


def be_busy(world):
    world.connect(CPU)
    print(f"{world.rank} waits", flush=True)
    if world.rank == 2:
        ctypes.PyDLL(None).usleep(2_500_000)  # Which keeps Python's other threads waiting.
    world.most(0)


def test_who_is_stopped_or_busy_is_not_dead(tmp_path):
    started = job(tmp_path, be_busy)
    for rank in range(SIZE):
        started.wait_for(f"{rank} waits")
    for process in started.processes[:2]:
        os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2)
    for process in started.processes[:2]:
        os.kill(process.pid, signal.SIGCONT)
    assert started.codes() == [0] * SIZE
    assert started.errors() == []


def meet_a_stranger(world, folder):
    world.connect(CPU)
    if world.first:
        invitation = json.loads(dist.FileStore(f"{folder}/store", SIZE).get("icckd/lifeline"))
        for word in (b"GET / HTTP/1.1\r\n\r\n", b'{"token": "guessed", "rank": 1}\n', b'{"failed": 1}\n', b"[]\n"):
            with socket.create_connection(("127.0.0.1", invitation["port"])) as stranger:
                stranger.sendall(word)
                assert stranger.recv(100) == b""
    world.most(0)


def test_strangers_are_sent_away(tmp_path):
    started = job(tmp_path, meet_a_stranger, str(tmp_path))
    assert started.codes() == [0] * SIZE, started.errors()
    assert started.errors() == []
