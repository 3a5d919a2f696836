"""Jobs of several processes, for tests: forked, as all of tests are."""

import os
import socket
import sys
import time
from pathlib import Path

import torch

from icckd.cli import main
from tests.distributed.processes import SERVER


class Job:
    """Processes that each call `part(rank, *arguments)`; what they write goes to files in `folder`."""

    def __init__(self, folder: Path, size: int, part, *arguments):
        self.folder, self.began = folder, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = [
            SERVER.Process(target=_process, args=(rank, str(folder), part, arguments)) for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def codes(self, seconds: float = 120.0) -> list[int]:
        """The exit code of every process; a failure where one is still there after this time."""
        try:
            for process in self.processes:
                process.join(max(self.began + seconds - time.monotonic(), 0.01))
            running = [rank for rank, process in enumerate(self.processes) if process.exitcode is None]
            assert not running, f"ranks {running} still run after {seconds} s; {self.errors()}"
            return [process.exitcode for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.join()

    def wait_for(self, text: str, seconds: float = 120.0) -> None:
        """Wait until one of the processes has written `text`."""
        until = time.monotonic() + seconds
        while not any(text in line for line in self.output() + self.errors()):
            assert time.monotonic() < until, f"nobody wrote {text!r}: {self.output()} {self.errors()}"
            time.sleep(0.02)

    def errors(self) -> list[str]:
        """All lines on standard error, rank by rank, but for warnings."""
        return [line for line in self._lines("stderr") if line.startswith("icckd: ") or "Traceback" in line]

    def output(self) -> list[str]:
        """All lines on standard output, rank by rank."""
        return self._lines("stdout")

    def _lines(self, name: str) -> list[str]:
        files = [self.folder / f"{name}-{rank}" for rank in range(len(self.processes))]
        return [line for file in files if file.exists() for line in file.read_text().splitlines()]


def _process(rank, folder, part, arguments):
    torch.set_num_threads(1)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        path = Path(folder, f"{'stdout' if number == 1 else 'stderr'}-{rank}")
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        stream.reconfigure(line_buffering=True)
    part(rank, *arguments)


def free_port():
    with socket.create_server(("localhost", 0)) as listener:
        return listener.getsockname()[1]


def command(rank, folder, size, port, arguments, variables):
    """`icckd` as torchrun would start it."""
    os.chdir(folder)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
        **variables,
    )
    main(list(map(str, arguments)))


def icckd(folder, *arguments, size=2, part=command, variables=None):
    folder.mkdir(parents=True, exist_ok=True)
    return Job(folder, size, part, str(folder), size, free_port(), arguments, variables or {})
