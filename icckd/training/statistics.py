"""The running statistics of normalisations: what a forward pass changes besides what it returns."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_NAMES = ("running_mean", "running_var")


class RunningStatistics:
    """The running statistics in `module`, so that a step that is skipped leaves them as they were.

    A forward pass that overflowed has spoilt them too. Nothing here waits for a GPU; each method is a few launches
    however many statistics there are.
    """

    def __init__(self, module: nn.Module):
        self._buffers = running_statistics_of(module)
        self._before: Tensor | None = None

    @torch.no_grad()
    def keep(self) -> None:
        """Remember what they are."""
        if self._buffers:
            self._before = self._as_one()

    @torch.no_grad()
    def now(self) -> list[Tensor]:
        """What they are, as one vector; none where there are none."""
        return [self._as_one()] if self._buffers else []

    @torch.no_grad()
    def become(self, now: list[Tensor], taken: Tensor) -> None:
        """Let them be `now`, as `now()` gives them, or, unless `taken`, 0-dim bool, what they were."""
        if self._before is None:
            return
        chosen = torch.where(taken, now[0], self._before).split([buffer.numel() for buffer in self._buffers])
        torch._foreach_copy_(self._buffers, [x.view_as(b) for x, b in zip(chosen, self._buffers, strict=True)])

    def _as_one(self) -> Tensor:
        return torch.cat([buffer.flatten() for buffer in self._buffers])


def running_statistics_of(module: nn.Module) -> list[Tensor]:
    return [buffer for name, buffer in module.named_buffers() if name.rpartition(".")[2] in _NAMES]


@contextmanager
def unmoved_statistics(module: nn.Module) -> Iterator[None]:
    """Within, a forward pass in training mode normalises by the batch as ever, and moves no running statistics."""
    tracking: list[Any] = [m for m in module.modules() if getattr(m, "track_running_stats", False)]
    for normalization in tracking:
        normalization.track_running_stats = False
    try:
        yield
    finally:
        for normalization in tracking:
            normalization.track_running_stats = True
