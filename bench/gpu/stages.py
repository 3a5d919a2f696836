"""The processes of a visit: each with a time limit, none able to take down another.

A case that crashes its process, or hangs, or makes the device unusable for it, is recorded; a fresh process goes on
with the cases behind it.
"""

import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu import results, worker
from bench.gpu.proof import outcomes
from bench.measure import Row

ROOT = Path(__file__).parents[2]
# Seconds that a process may need to start, that one case may take, and that a process gets to end after its time.
_START, _CASE, _GRACE = 60, 60, 20
# Characters kept of a log.
_LOG = 6000


@dataclass
class Visit:
    """One call of `bench.gpu`: where its results go, when it must end, and what it has done so far."""

    output: Path
    dry_run: bool
    end: float
    stages: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: {"accuracy": [], "speed": []})

    def run(self, stage: str, command: Sequence[str], limit: float, **environment: str) -> bool:
        """Run a command for at most so many seconds; whether it succeeded. The end of what it prints is kept."""
        print(f"== {stage}: {shlex.join(command)}", flush=True)
        start = time.time()
        with tempfile.TemporaryFile("w+") as log:
            process = _start(command, log, {**self._environment(), **environment})
            status = _wait(process, start + limit)
            log.seek(0)
            text = log.read()
        why = None if status == 0 else _ending(status, limit)
        self._note(stage, start, why, text[-_LOG:])
        return status == 0

    def work(self, stage: str, until: float, places: Sequence[int] | None = None, part: int = 0) -> None:
        """Run a worker's stage over its cases, in as many processes as it takes, until a time."""
        cases = worker.case_list(stage, self.dry_run)
        remaining = list(range(len(cases)) if places is None else places)
        start, why = time.time(), None
        progress = self.output / f".{stage}.{part}.json"
        while True:
            progress.unlink(missing_ok=True)
            process = _start(self._worker(stage, remaining, until, progress), None, self._environment())
            status = _watch(process, progress, until + _GRACE)
            done, in_hand = _read(progress)
            remaining = [k for k in remaining if k not in done]
            if status == 0:
                break
            why = _ending(status, _CASE)
            if in_hand is None:
                break
            remaining.remove(in_hand)
            self.failed.append({"stage": stage, "case": cases[in_hand].name, "why": why})
            print(f"   {cases[in_hand].name}: {why}", flush=True)
            if not remaining or time.time() > until:
                break
        progress.unlink(missing_ok=True)
        if stage in self.left_out:
            self.left_out[stage] += [cases[k].name for k in remaining]
        self._note(f"{stage}{f' {part}' if part else ''}", start, why, None)

    def share(self, stage: str, until: float, processes: int) -> None:
        """Divide a stage in which nothing is timed between processes."""
        count = len(worker.case_list(stage, self.dry_run))
        with ThreadPoolExecutor(processes) as pool:
            parts = [pool.submit(self.work, stage, until, range(k, count, processes), k) for k in range(processes)]
        for part in parts:
            part.result()

    def tests(self, until: float) -> None:
        """The GPU tests; their outcomes in tests.json."""
        if importlib.util.find_spec("pytest") is None:
            results.add(self.output / "tests.json")
            self._note("tests", time.time(), "pytest is not installed", None)
            return
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "junit.xml"
            command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-p", "no:cacheprovider"]
            self.run("tests", [*command, f"--junitxml={report}"], until - time.time())
            results.add(self.output / "tests.json", *outcomes(report))

    def build(self, capability: str, limit: float) -> None:
        """The extension and the CUDA kernels, for this device's architecture; in a dry run only what it is called."""
        command = [sys.executable, "setup.py", "-q", *(["--name"] if self.dry_run else ["build_ext", "--inplace"])]
        # From Hopper on, the matrix unit's instructions are the architecture's own: 9.0a.
        name = capability + ("a" if float(capability) >= 9 else "")
        self.run("build", command, limit, TORCH_CUDA_ARCH_LIST=name, ICCKD_CUDA="1")

    def _worker(self, stage: str, places: Sequence[int], until: float, progress: Path) -> list[str]:
        command = [sys.executable, "-m", "bench.gpu.worker", stage, "--output", str(self.output)]
        command += ["--until", str(until), "--progress", str(progress), "--cases", *map(str, places)]
        return [*command, "--dry-run"] if self.dry_run else command

    def _environment(self) -> dict[str, str]:
        # The interpreter warns of the infinities that kernels mean.
        interpreter = {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore::RuntimeWarning"}
        return {**os.environ, **interpreter} if self.dry_run else dict(os.environ)

    def _note(self, stage: str, start: float, why: str | None, log: str | None) -> None:
        row = {"stage": stage, "seconds": round(time.time() - start, 1), "succeeded": why is None, "why": why}
        self.stages.append({**row, "log": log} if log else row)
        print(f"== {stage}: {row['seconds']} s{'' if why is None else f', {why}'}", flush=True)


def _start(command: Sequence[str], log, environment: dict[str, str]) -> subprocess.Popen:
    """A process of a group of its own, so that it ends with all that it started."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
        env=environment,
        start_new_session=True,
    )


def _wait(process: subprocess.Popen, until: float) -> int | None:
    """Its exit status, or None where it was ended because its time was up."""
    try:
        return process.wait(max(0.0, until - time.time()))
    except subprocess.TimeoutExpired:
        _end(process)
        return None


def _watch(process: subprocess.Popen, progress: Path, until: float) -> int | None:
    """The same for a worker, whose time is up too when it has not gone on to another case for long."""
    last_change, state = time.time() + _START, None
    while process.poll() is None:
        now = time.time()
        if _read(progress) != state:
            last_change, state = now, _read(progress)
        if now > until or now > last_change + _CASE:
            _end(process)
            return None
        time.sleep(0.1)
    return process.returncode


def _end(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(progress: Path) -> tuple[set[int], int | None]:
    """The cases that are done, and the one in hand."""
    if not progress.exists():
        return set(), None
    content = json.loads(progress.read_text())
    return set(content["done"]), content["in_hand"]


def _ending(status: int | None, limit: float) -> str:
    if status is None:
        return f"ended after {limit:.0f} s"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
