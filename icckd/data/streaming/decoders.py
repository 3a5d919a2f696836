"""Processes that decode images ahead of their use."""

import os
import signal
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from icckd.data.streaming.pictures import Request, decode
from icckd.errors import UserError

# Requests that a process has decoded or been given at any time.
_AHEAD = 8


class Decoders:
    """Decode requests in order, ahead of their use, in processes that live as long as this does.

    Those that come while others are under way have processes of their own. `workers` is how many there are; None: one
    per processor; 0: this process decodes by itself, not ahead.
    """

    def __init__(self, workers: int | None):
        self._workers = (os.cpu_count() or 1) if workers is None else workers
        self._idle: dict[bool, list[tuple[_Requests, DataLoader[Tensor | str]]]] = defaultdict(list)

    def run(self, requests: Iterable[Request], *, pin_memory: bool) -> Iterator[Tensor]:
        """What `decode` makes of each request, in their order, in pinned memory if wanted.

        Closing it leaves the processes ready for other requests. Raises UserError as `decode` does, and where a process
        has ended, for want of memory perhaps.
        """
        idle = self._idle[pin_memory]
        source, loader = idle.pop() if idle else self._new(pin_memory)
        source.now = requests
        alive = True
        try:
            for answer in _started(loader):
                if isinstance(answer, str):
                    raise UserError(answer)
                yield answer
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            alive = False
            reason = str(error) or type(error).__name__
            raise UserError(
                f"data.workers: a process that decodes images has ended: {reason}; give fewer, or 0 to do without"
            ) from error
        finally:
            if alive:
                idle.append((source, loader))

    def _new(self, pin_memory: bool) -> "tuple[_Requests, DataLoader[Tensor | str]]":
        source, processes = _Requests(), self._workers > 0
        return source, DataLoader(
            _Decoded(),
            batch_size=None,
            sampler=source,
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=_ignore_interrupts,
            prefetch_factor=_AHEAD if processes else None,
            persistent_workers=processes,
            # It draws a seed for each epoch: not from the random numbers of training.
            generator=torch.Generator(),
        )


def _started(loader: DataLoader[Tensor | str]) -> Iterator[Tensor | str]:
    """What comes from `loader`. That a process has ended it says then, not by a signal in the midst of anything."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


class _Requests(Sampler[Request]):
    """Requests in place of the numbers of samples."""

    def __init__(self) -> None:
        self.now: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.now)


class _Decoded(Dataset[Tensor | str]):
    """What `decode` makes of a request, or what its UserError says: no such error comes out of a process whole."""

    def __getitem__(self, request: Request) -> Tensor | str:
        try:
            return decode(request)
        except UserError as error:
            return str(error)


def _as_it_is(answer: Any) -> Any:
    return answer


def _ignore_interrupts(worker: int) -> None:
    # Those of a terminal reach all its processes; which then end is for the first one to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
