"""The errors that this package raises beyond Python's own ValueError and TypeError."""

import argparse
import signal


def printable(text: str) -> str:
    """`text` on one line of characters that can be seen and encoded: others, as file names may hold, are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: BaseException, longest: int = 200) -> str:
    """What `error` says, on one line and not endless: libraries' messages have many lines."""
    return " ".join(str(error).split())[:longest]


class BackendUnavailable(RuntimeError):
    """A backend cannot run here; the message says why and what would make it available."""


class UserError(ValueError):
    """A setting or an input file is wrong. The command line prints it as one line and exits with 2."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class TrainingDiverged(RuntimeError):
    """The loss, the network or its answers are not finite and will not be again. The command line exits with 3."""


class Interrupted(RuntimeError):
    """A signal asked the run to stop; a checkpoint was saved first. The command line exits with 128 + signal."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number} after saving a checkpoint; --resume continues")
        self.signal_number = signal_number


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code of a process that `error` ends, and the line that says why."""
    if isinstance(error, (UserError, argparse.ArgumentError)):
        return 2, str(error) or type(error).__name__
    if isinstance(error, OSError):
        return 2, f"{error.filename}: {error.strerror}" if error.filename else str(error) or type(error).__name__
    if isinstance(error, TrainingDiverged):
        return 3, str(error)
    if isinstance(error, Interrupted):
        return 128 + error.signal_number, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return code, f"stopped by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
    return 1, f"{type(error).__name__}: {reason(error, 300)} (--debug shows where)"
