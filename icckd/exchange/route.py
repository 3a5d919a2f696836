"""Rows that travel each to one rank, and back."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

# Integers of so many bytes. What travels is only ever copied.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Route:
    """Which of this rank's rows go where, and how many come: known on the host, so nothing waits for a GPU.

    Rows arrive by source rank, and from each in the order in which they stand there: that of all ranks' rows in a line.
    All ranks of the group make the same calls. Several tensors travel as one message, whatever their dtypes.

    Args:
        group: The process group.
        rank: This process's place in it.
        destinations: (n,) the rank that each of this rank's rows goes to; a row that names none stays, and comes back
            as 0.
        travelling: (ranks, ranks) how many rows go from each rank, down, to each, across.
        device: Where rows are.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        rank: int,
        destinations: NDArray[np.int64],
        travelling: NDArray[np.int64],
        device: torch.device,
    ):
        self.group, self.count = group, len(destinations)
        self.sent: list[int] = travelling[rank].tolist()
        self.received: list[int] = travelling[:, rank].tolist()
        kept = np.where((destinations >= 0) & (destinations < len(travelling)), destinations, len(travelling))
        # This rank's rows in the order in which they leave, (sum(sent),).
        self.order = on_device(np.argsort(kept, kind="stable")[: sum(self.sent)], device)

    def there(self, *rows: Tensor, constants: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """The rows that arrive here of `rows`, each (n, …), with gradient, and of `constants`, without.

        In backward every rank takes part, whether its own rows need a gradient or not.
        """
        return _There.apply(self, len(rows), *_differentiable(rows), *(x.detach() for x in constants))

    def back(self, *arrived: Tensor, constants: Sequence[Tensor] = ()) -> tuple[Tensor, ...]:
        """Rows that had arrived, at home again, each (n, …), 0 where a row stayed; with gradient as `there`."""
        return _Back.apply(self, len(arrived), *_differentiable(arrived), *(x.detach() for x in constants))

    def send_back(self, *arrived: Tensor) -> "Return":
        """The same without gradient, under way when this returns."""
        return Return(self, arrived)

    def _send_there(self, rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
        leaving = _pack([x[self.order] for x in rows])
        arriving = leaving.new_empty(sum(self.received), leaving.shape[1])
        dist.all_to_all_single(arriving, leaving, self.received, self.sent, group=self.group)
        return tuple(_unpack(arriving, rows))


class Return:
    """Rows on their way home; `wait` returns them."""

    def __init__(self, route: Route, arrived: Sequence[Tensor]):
        self._route = route
        self._like = [x[:0] for x in arrived]
        self._leaving = _pack(arrived)
        self._arriving = self._leaving.new_empty(sum(route.sent), self._leaving.shape[1])
        self._work = dist.all_to_all_single(
            self._arriving, self._leaving, route.sent, route.received, group=route.group, async_op=True
        )

    def wait(self) -> tuple[Tensor, ...]:
        """(n, …) each, 0 where a row stayed. A GPU's stream waits, not the host."""
        self._work.wait()
        home = _unpack(self._arriving, self._like)
        empty = [x.new_zeros((self._route.count, *x.shape[1:])) for x in home]
        return tuple(x.index_copy_(0, self._route.order, y) for x, y in zip(empty, home, strict=True))


def on_device(numbers: NDArray[np.int64], device: torch.device) -> Tensor:
    """`numbers` on `device`, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(numbers))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class _There(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, route: Route, differentiated: int, *rows: Tensor) -> tuple[Tensor, ...]:
        ctx.route, ctx.differentiated = route, differentiated
        arrived = route._send_there(rows)
        ctx.mark_non_differentiable(*arrived[differentiated:])
        return arrived

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        constants = [None] * (len(gradients) - ctx.differentiated)
        return None, None, *ctx.route.back(*gradients[: ctx.differentiated]), *constants


class _Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, route: Route, differentiated: int, *arrived: Tensor) -> tuple[Tensor, ...]:
        ctx.route, ctx.differentiated = route, differentiated
        home = route.send_back(*arrived).wait()
        ctx.mark_non_differentiable(*home[differentiated:])
        return home

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        constants = [None] * (len(gradients) - ctx.differentiated)
        return None, None, *ctx.route.there(*gradients[: ctx.differentiated]), *constants


def _differentiable(rows: Sequence[Tensor]) -> list[Tensor]:
    """`rows`, such that this rank takes part in backward where any does."""
    if not torch.is_grad_enabled():
        return list(rows)
    return [x if x.requires_grad else x.detach().requires_grad_() for x in rows]


def _pack(rows: Sequence[Tensor]) -> Tensor:
    """Tensors of n rows each as one, uint8 (n, bytes of a row)."""
    word = _WORDS[min(x.element_size() for x in rows)]
    parts = [x.detach().reshape(len(x), _numbers(x)).contiguous().view(word) for x in rows]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).view(torch.uint8)


def _unpack(message: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of a message, of the dtypes of `like` and, but for the number of rows, of their shapes."""
    parts = message.split([_numbers(x) * x.element_size() for x in like], dim=1)
    if len(like) > 1:
        # A view of wider numbers must begin where such a number can; a copy does.
        parts = tuple(part.clone(memory_format=torch.contiguous_format) for part in parts)
    return [part.view(x.dtype).reshape(len(message), *x.shape[1:]) for part, x in zip(parts, like, strict=True)]


def _numbers(x: Tensor) -> int:
    """How many numbers a row has."""
    return math.prod(x.shape[1:])
