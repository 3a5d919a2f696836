"""What was taken and what was skipped, counted where the steps are computed."""

from typing import Any

import torch
from torch import Tensor


class StepCounts:
    """How many steps were taken and skipped, and the sums of the losses of those that were taken.

    All of it lives on `device`: `add` never waits for it, and the rest does.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)
        self._taken, self._skipped, self._in_a_row, self._longest = self._counts.unbind()
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, losses: dict[str, Tensor], taken: Tensor) -> None:
        """Count a step with these 0-dim losses as taken, if `taken`, 0-dim bool, and else as skipped."""
        skipped = taken.logical_not()
        self._taken += taken
        self._skipped += skipped
        self._in_a_row.add_(1).mul_(skipped)
        torch.maximum(self._longest, self._in_a_row, out=self._longest)
        for name, value in losses.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros((), dtype=torch.float64, device=self._device)
            self._sums[name] += torch.where(taken, value.detach(), 0)

    @property
    def skipped(self) -> int:
        """Steps skipped since the beginning."""
        return int(self._skipped)

    @property
    def in_a_row(self) -> int:
        """Steps skipped since the last that was taken."""
        return int(self._in_a_row)

    @property
    def longest(self) -> int:
        """The most steps that were ever skipped in a row."""
        return int(self._longest)

    def means(self) -> dict[str, float]:
        """The mean losses of the steps taken since the last `forget`, by name."""
        taken = int(self._taken)
        return {name: value.item() / taken for name, value in self._sums.items()} if taken else {}

    def forget(self) -> None:
        """Begin anew with the sums; what was skipped stays."""
        self._taken.zero_()
        for value in self._sums.values():
            value.zero_()

    def state(self) -> dict[str, Any]:
        return {"counts": self._counts.tolist(), "sums": {name: value.item() for name, value in self._sums.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        for count, value in zip(self._counts, state["counts"], strict=True):
            count.fill_(int(value))
        self._sums = {
            name: torch.tensor(float(value), dtype=torch.float64, device=self._device)
            for name, value in state["sums"].items()
        }
