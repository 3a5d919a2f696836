"""The workers as their parent sees them: started, told what to do, heard, stopped. None outlives the parent."""

import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import TracebackType

from icckd.comparison.plan import Run
from icckd.comparison.starting import start
from icckd.comparison.team import serve
from icckd.comparison.worker import Check, Failed, Reply, Stop, Told, Train

# A worker that has nothing to do ends at once; one that has not after this long is ended.
_LAST_SECONDS = 5.0


@dataclass
class _Member:
    process: SpawnProcess
    line: Connection
    run: Run | None = None


class Crew:
    """Up to `size` workers, started as they are needed: `processes` processes each, with `threads` threads.

    A context: at its end, however that comes, all are gone.
    """

    def __init__(self, size: int, threads: int, processes: int = 1, debug: bool = False):
        self._size = size
        self._threads = threads
        self._processes = processes
        self._debug = debug
        self._members: list[_Member] = []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self._members:
            _send(member, None)
            if member.run is not None:
                member.process.kill()
        until = time.monotonic() + _LAST_SECONDS
        for member in self._members:
            member.process.join(max(until - time.monotonic(), 0.1))
            member.process.kill()
            member.process.join()
            member.line.close()
        self._members.clear()

    @property
    def running(self) -> list[Run]:
        """The runs that workers are at."""
        return [member.run for member in self._members if member.run is not None]

    @property
    def has_room(self) -> bool:
        """Is there a worker without a run, or could one be started?"""
        return len(self.running) < self._size

    def give(self, run: Run, order: Check | Train) -> None:
        """Let a free worker carry out `order`, which is about `run`."""
        member = next((each for each in self._members if each.run is None), None) or self._started()
        member.run = run
        _send(member, order)

    def stop(self, signal_number: int) -> None:
        """Ask every worker to end its training in good order; `hear` tells how that went."""
        for member in self._members:
            _send(member, Stop(signal_number))

    def hear(self, seconds: float) -> Iterator[tuple[Run, Reply]]:
        """What workers have to say, waiting `seconds` at most for the first word.

        After an Answer the order is carried out; a worker that died answers Failed, and another takes its place.
        """
        lines: Sequence[Connection] = [member.line for member in self._members]
        ready = wait(lines, seconds) if lines else []
        for member in [each for each in self._members if each.line in ready]:
            run, reply = member.run, self._reply(member)
            if run is not None:
                if not isinstance(reply, Told):
                    member.run = None
                yield run, reply

    def _reply(self, member: _Member) -> Reply:
        reply: Reply | None = None
        with suppress(EOFError, OSError):
            reply = member.line.recv()
        if reply is None or (isinstance(reply, Failed) and reply.last):
            member.process.join()
            member.line.close()
            self._members.remove(member)
        return Failed(_death(member.process.exitcode)) if reply is None else reply

    def _started(self) -> _Member:
        here, there = multiprocessing.Pipe()
        process = start(serve, there, self._threads, self._processes, self._debug)
        there.close()
        self._members.append(_Member(process, here))
        return self._members[-1]


def _send(member: _Member, order: Check | Train | Stop | None) -> None:
    with suppress(OSError):  # It has died, as `hear` finds.
        member.line.send(order)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        hint = ": out of memory, perhaps" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{hint}"
    return f"its process ended with exit code {code}"
