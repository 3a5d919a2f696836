"""The processes of a visit: each with a time limit, none able to take down another, none outliving the visit.

A case that crashes its process, or hangs, or makes the device unusable for it, is recorded; a fresh process goes on,
without the contender that was in hand where that is known, else with the cases behind it.
"""

import hashlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bench.gpu import keeper, results, worker
from icckd.bench.measure import Row

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "icckd" / "_cuda.so"
# Seconds that a process may need to start, that a contender of a stage may take, and before the end of a stage in which
# no further case is begun.
_START, _CASE, _LAST = 90, {"compile": 150, "compile_all": 150, "accuracy": 90, "speed": 75, "peers": 90}, 10
# Crashes after which a contender is left out of the remaining cases of a family.
_STRIKES = 2
# Seconds between records while a stage goes on.
_RECORD = 10
# Characters kept of a log, and shown of that of a command that failed.
_LOG, _SHOWN = 6000, 1500
LEFT_OUT = ("tests", "accuracy", "speed", "peers")


@dataclass
class Visit:
    """One call of `bench.gpu`: where its results go, when it must end, and what it has done so far.

    scratch: A folder for what processes tell one another.
    """

    output: Path
    scratch: Path
    dry_run: bool
    end: float
    only: tuple[str, ...] = ()
    part: str = ""
    stages: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: {stage: [] for stage in LEFT_OUT})

    def run(self, stage: str, command: Sequence[str], until: float, **environment: str) -> bool:
        """Run a command until a time at most; whether it succeeded. The end of what it prints is kept."""
        print(f"== {stage}: {shlex.join(command)}", flush=True)
        start = time.time()
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            process = _start(command, log, {**self._environment(), **environment})
            status = _wait(process, until)
            log.seek(0)
            text = results.portable(log.read())
        why = None if status == 0 else _ending(status, until - start)
        if why is not None:
            print(text[-_SHOWN:], flush=True)
        self._note(stage, start, why, text[-_LOG:])
        return status == 0

    def work(self, stage: str, until: float) -> bool:
        """Run a worker's stage over its cases, one after another; whether no process failed."""
        return self.share(stage, until, 1)

    def share(self, stage: str, until: float, processes: int) -> bool:
        """Divide a stage in which nothing is timed between processes; whether none failed."""
        start, count = time.time(), len(worker.case_list(stage, self.dry_run, self.only))
        processes = max(1, min(processes, count))
        with ThreadPoolExecutor(processes) as pool:
            shares = [range(k, count, processes) for k in range(processes)]
            parts = [pool.submit(self._work, stage, until, share, k) for k, share in enumerate(shares)]
        why = next((why for part in parts if (why := part.result()) is not None), None)
        self._note(stage, start, why, None)
        return why is None

    def _work(self, stage: str, until: float, places: Sequence[int], part: int) -> str | None:
        """A share of a stage, in as many processes as it takes; what went wrong last, if anything did."""
        cases = worker.case_list(stage, self.dry_run, self.only)
        remaining, why = list(places), None
        without: list[tuple[int, str]] = []
        strikes: Counter[tuple[str, str]] = Counter()
        progress = self.scratch / f"{stage}.{part}.json"
        while True:
            progress.unlink(missing_ok=True)
            process = _start(self._worker(stage, remaining, without, until, progress), None, self._environment())
            status = _watch(process, progress, until, _CASE.get(stage, _START))
            done, in_hand, contender = _read(progress)
            remaining = [k for k in remaining if k not in done]
            if status == 0 or time.time() >= until:
                break
            why = _ending(status, _CASE.get(stage, _START))
            if in_hand is None:
                break
            case = cases[in_hand]
            row = {"part": self.part, "stage": stage, "case": case.name, "contender": contender, "why": why}
            self.failed.append(row)
            print(f"   {case.name}{f', {contender}' if contender else ''}: {why}", flush=True)
            if contender is None or (in_hand, contender) in without:
                remaining.remove(in_hand)
            else:
                strikes[case.family, contender] += 1
                out = strikes[case.family, contender] >= _STRIKES
                without += [
                    (k, contender) for k in remaining if k == in_hand or (out and cases[k].family == case.family)
                ]
            if not remaining:
                break
        if stage in self.left_out:
            self.left_out[stage] += [cases[k].name for k in remaining]
        return why

    def tests(self, name: str, chosen: str, until: float, processes: int) -> None:
        """The GPU tests that `chosen` (pytest's -k) selects; their outcomes in tests.json as they come."""
        if importlib.util.find_spec("pytest") is None:
            self._note(f"tests {name}", time.time(), "pytest is not installed", None)
            return
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-k", chosen, "-p", "no:cacheprovider"]
        command += ["-p", "bench.gpu.outcomes", "--outcomes", str(self.output / "tests.json")]
        command += ["--planned", str(self.scratch / f"tests.{name}.json")]
        if importlib.util.find_spec("xdist"):
            command += ["-p", "xdist", "-n", str(processes), "--maxschedchunk", "1"]
        # Plugins that happen to be there have no part in this.
        self.run(f"tests {name}", command, until, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")

    def build(self, capability: str, until: float) -> None:
        """The CUDA library, for this device's architecture; in a dry run only what the package is called."""
        command = [sys.executable, "setup.py", "-q", *(["--name"] if self.dry_run else ["build_ext", "--inplace"])]
        # From Hopper on, the matrix unit's instructions are the architecture's own: 9.0a.
        name = capability + ("a" if float(capability) >= 9 else "")
        stamp, built_from = ROOT / "build" / "cuda" / "built_from", f"{name} {_digest()}"
        if LIBRARY.exists() and stamp.exists() and stamp.read_text() == built_from:
            self._note("build", time.time(), None, "up to date")
            return
        built = self.run("build", command, until, TORCH_CUDA_ARCH_LIST=name, ICCKD_CUDA="1", ICCKD_NO_EXTENSION="1")
        if built and not self.dry_run:
            stamp.write_text(built_from)

    def untested(self) -> list[str]:
        """The tests that were planned and have no outcome."""
        planned = [test for file in sorted(self.scratch.glob("tests.*.json")) for test in json.loads(file.read_text())]
        have = {row["test"] for row in results.read(self.output / "tests.json")}
        return [test for test in planned if test not in have]

    @contextmanager
    def recording(self, record: Callable[[], None]) -> Iterator[None]:
        """Call `record` every few seconds."""
        over = threading.Event()

        def repeat() -> None:
            while not over.wait(_RECORD):
                record()

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _worker(
        self, stage: str, places: Sequence[int], without: list[tuple[int, str]], until: float, progress: Path
    ) -> list[str]:
        command = [sys.executable, "-m", "bench.gpu.worker", stage, "--output", str(self.output)]
        command += ["--until", str(until - _LAST), "--progress", str(progress)]
        for place, contender in without:
            command += ["--without", str(place), contender]
        command += ["--only", *self.only, "--cases", *map(str, places)]
        return [*command, "--dry-run"] if self.dry_run else command

    def _environment(self) -> dict[str, str]:
        # Many processes compile at once; and output is read as it comes.
        always = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        # The interpreter warns of the infinities that kernels mean.
        interpreter = {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore::RuntimeWarning"}
        return {**os.environ, **always, **(interpreter if self.dry_run else {})}

    def _note(self, stage: str, start: float, why: str | None, log: str | None) -> None:
        row = {"part": self.part, "stage": stage, "seconds": round(time.time() - start, 1)}
        row |= {"succeeded": why is None, "why": why}
        self.stages.append({**row, "log": log} if log else row)
        print(f"== {stage}: {row['seconds']} s{'' if why is None else f', {why}'}", flush=True)


def _digest() -> str:
    """Of all that the CUDA library is built from."""
    digest = hashlib.sha256()
    for path in [ROOT / "setup.py", *sorted((ROOT / "csrc").rglob("*"))]:
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _start(command: Sequence[str], log: IO[str] | None, environment: dict[str, str]) -> subprocess.Popen:
    """A process of a group of its own, which ends with all that it started, at the latest when this process does."""
    return subprocess.Popen(
        [sys.executable, "-I", keeper.__file__, str(os.getpid()), *command],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
        env=environment,
    )


def _wait(process: subprocess.Popen, until: float) -> int | None:
    """Its exit status, or None where it was ended because its time was up."""
    try:
        return process.wait(max(0.0, until - time.time()))
    except subprocess.TimeoutExpired:
        _end(process)
        return None


def _watch(process: subprocess.Popen, progress: Path, until: float, patience: float) -> int | None:
    """The same for a worker, whose time is up too when it has not made any progress for so long."""
    last_change, state = time.time() + _START, _read(progress)
    while process.poll() is None:
        now = time.time()
        if (found := _read(progress)) != state:
            last_change, state = now, found
        if now > until or now > last_change + patience:
            _end(process)
            return None
        time.sleep(0.1)
    return process.returncode


def _end(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not made its group yet
        process.kill()
    process.wait()


def _read(progress: Path) -> tuple[set[int], int | None, str | None]:
    """The cases that are done, the one in hand, and its contender if it is one alone."""
    if not progress.exists():
        return set(), None, None
    content = json.loads(progress.read_text())
    return set(content["done"]), content["in_hand"], content["contender"]


def _ending(status: int | None, limit: float) -> str:
    if status is None:
        return f"ended after {limit:.0f} s"
    return f"killed by {signal.Signals(status - 128).name}" if status > 128 else f"exit status {status}"
