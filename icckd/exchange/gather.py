"""All ranks' rows on every rank."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from icckd.ops.saved_gradient import depending_once


def gather(values: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """All ranks' values (N, …), rank by rank, without gradient; `counts` are the rows of each rank."""
    padded = values.new_zeros((max(counts), *values.shape[1:]))
    padded[: len(values)] = values.detach()
    received = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(received, padded, group=group)
    return torch.cat([x[:count] for x, count in zip(received, counts, strict=True)])


def gather_with_gradient(values: Tensor, counts: Sequence[int], own: slice, group: dist.ProcessGroup) -> Tensor:
    """All ranks' values (N, …), of which `own` are this rank's; its gradient is the sum of all ranks' gradients.

    It always takes part in backward: a rank whose own values need no gradient has to serve the others.
    """
    if torch.is_grad_enabled() and not values.requires_grad:
        values = values.detach().requires_grad_()
    return _Gather.apply(values, counts, own, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, counts: Sequence[int], own: slice, group: dist.ProcessGroup) -> Tensor:
        ctx.own, ctx.group = own, group
        return gather(values, counts, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Summed in float32, lest every rank's term be rounded to half precision again.
        precise = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.detach().to(precise, copy=True).contiguous()
        dist.all_reduce(total, group=ctx.group)
        own = total[ctx.own].to(gradient.dtype)
        return own + depending_once(gradient) if torch.is_grad_enabled() else own, None, None, None
