"""Standard output and error, fit for whatever stands behind them: another encoding, a reader who has left, nothing."""

import io
import os
import sys
from typing import Any, TextIO


def make_forgiving() -> None:
    """Let sys.stdout and sys.stderr take any text, also when nobody reads it.

    A character that the encoding lacks becomes "?" on standard output, which keeps its columns, and an escape on
    standard error, whose messages name files. What is written after the reader has closed the pipe is dropped: who has
    read enough finds no fault with the work. A stream that was closed from the start becomes one that keeps nothing.
    """
    sys.stdout = _forgiving(sys.stdout, sys.__stdout__, "replace")
    sys.stderr = _forgiving(sys.stderr, sys.__stderr__, "backslashreplace")


def nowhere() -> TextIO:
    """A stream that keeps nothing."""
    return open(os.devnull, "w", encoding="utf-8")


def _forgiving(stream: TextIO | None, original: TextIO | None, errors: str) -> TextIO:
    if stream is None:
        return nowhere()
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=errors)
        # Only the process's own: what others have put in their place, such as a test's capture, stays theirs.
        if stream is original and isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):
            return io.TextIOWrapper(
                io.BufferedWriter(_Pipe(stream.fileno(), "wb", closefd=False)),
                encoding=stream.encoding,
                errors=errors,
                line_buffering=stream.line_buffering or stream.write_through,
            )
    return stream


class _Pipe(io.FileIO):
    """A file that leads nowhere from its first failed write on, so that what is left is not tried again at exit.

    That its reader has left is no error; every other failure is raised, once.
    """

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise
            return len(data)
