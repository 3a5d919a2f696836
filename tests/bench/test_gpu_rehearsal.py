"""A visit that is killed at any moment leaves whole files and no process behind: dry runs, killed at random moments."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from bench.gpu import record, results, stages
from tests.bench.gpu_rows import MACHINE, check, outcome

pytest.importorskip("triton")
if not Path("/proc/self/environ").exists():
    pytest.skip("there is no /proc to find processes in", allow_module_level=True)

# Seconds by which what a killed visit has started must be gone, and that one undisturbed may take.
GONE, LONGEST = 5, 600


class DryRun:
    """A dry run in a process of its own, and everything that it starts."""

    def __init__(self, output, part, *options):
        self.output = output
        self.marker = f"ICCKD_REHEARSAL={uuid.uuid4()}"
        name, value = self.marker.split("=")
        temporary = output.parent / "temporary"
        temporary.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.gpu", "--dry-run", "--part", part, "--output", str(output), *options],
            cwd=stages.ROOT,
            env={**os.environ, name: value, "TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def watch(self, seconds):
        """Look at the files for so long after the first was written, or until it ends."""
        while not (self.output / "speed.json").exists():
            assert self.process.poll() is None
            time.sleep(0.05)
        until = time.time() + seconds
        while time.time() < until and self.process.poll() is None:
            assert_whole(self.output)
            time.sleep(0.01)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        until = time.time() + GONE
        while (left := self.processes()) and time.time() < until:
            time.sleep(0.05)
        assert left == []

    def processes(self):
        """The command lines of those that are alive."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.marker.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue  # it has ended, or is not ours
        return found


def assert_whole(output):
    """Nothing but files of a visit, each of which can be read."""
    names = {path.name for path in output.iterdir()} if output.exists() else set()
    assert names <= set(record.FILES)
    for name in names:
        if name.endswith(".json"):
            content = json.loads((output / name).read_text(encoding="utf-8"))
            assert isinstance(content, dict if name in ("machine.json", "proof.json") else list)


def proven(output):
    """A folder as `prove` leaves it."""
    output.mkdir()
    results.write(output / "machine.json", MACHINE)
    results.put(output / "tests.json", outcome())
    results.put(output / "accuracy.json", check())
    results.remove_temporary(output)


@pytest.mark.parametrize("part", ["prove", "measure"])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_a_visit_that_is_killed_leaves_whole_files_and_no_process(tmp_path, part, seed):
    output = tmp_path / "visit"
    if part == "measure":
        proven(output)
    run = DryRun(output, part, "--cases", "kd_kl", "layout")
    # After a minute most runs are over.
    run.watch(random.Random(seed).uniform(0, 60 if seed else 10))
    run.kill()
    assert_whole(output)
    if part == "measure":
        assert results.read(output / "tests.json") == [outcome()]
        assert results.read(output / "accuracy.json") == [check()]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["prove", "measure"])
def test_files_are_whole_at_every_moment_of_an_undisturbed_visit(tmp_path, part):
    output = tmp_path / "visit"
    if part == "measure":
        proven(output)
    run = DryRun(output, part, "--cases", "kd_kl", "layout")
    run.watch(LONGEST)
    assert run.process.wait(0) is not None
    assert run.processes() == []
    assert set(record.FILES) - {"speed.png"} <= {path.name for path in output.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"visit", "temporary"}
    assert not list((tmp_path / "temporary").glob("bench-gpu-*"))
