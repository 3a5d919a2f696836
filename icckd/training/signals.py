"""Stop in good order on SIGINT and SIGTERM."""

import signal
import threading
from types import FrameType, TracebackType


class StopSignal:
    """Context in which SIGINT and SIGTERM are noted in `received` instead of ending the process.

    The second signal acts as it did before: a user who insists is not kept waiting. One of several processes that a
    launcher started has no use for that: the launcher sends signals of its own after those of a terminal, and kills who
    takes too long. With `launched` further signals change nothing; one that the context ended without obeying is raised
    again, and where an error ends it, signals are ignored from then on. Outside the main thread, where Python cannot
    catch signals, the context does nothing.
    """

    def __init__(self, launched: bool = False) -> None:
        self._launched = launched
        self.received: int | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        caught = list(self._previous)
        self._restore()
        if self._launched and self.received is not None:
            if kind is None:
                signal.raise_signal(self.received)
            for number in caught:
                signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._launched:
            self.received = number
            self._restore()
        elif self.received is None:
            self.received = number

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
