"""Stop in good order on SIGINT and SIGTERM."""

import signal
import threading
from types import FrameType, TracebackType


class StopSignal:
    """Context in which SIGINT and SIGTERM are noted in `received` instead of ending the process.

    The second signal acts as it did before: a user who insists is not kept waiting. Outside the main thread, where
    Python cannot catch signals, the context does nothing.
    """

    def __init__(self) -> None:
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
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
