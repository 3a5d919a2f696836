"""How processes of a comparison are started."""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def start(target: Callable[..., None], *arguments: Any) -> SpawnProcess:
    """A new process that calls `target(*arguments)`, with SIGNALS blocked until it is ready for them.

    A signal to the whole group must not meet it before.
    """
    # Not one that Python ends by itself: those may not start processes, as streamed data do.
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=False)
    # The tracker, which Python starts beside the first process, would undo what is blocked.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process
