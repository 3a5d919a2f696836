"""A peer: rows travel around a ring, forward and again backward; nobody ever holds more than two ranks' rows.

As in ring attention (arXiv 2310.01889) and Inf-CL (arXiv 2410.17243) the log-sum-exp is merged block by block. Backward
the rows go around again, and each block's gradient with them, to which every rank adds its part. O(N·D/W) numbers of
memory, but O(N·D) through every link.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from icckd.bench.peers import TEMPERATURE, Inputs


def ring(x: Inputs, group: dist.ProcessGroup) -> Tensor:
    """The mean loss of own rows, each an anchor. Equally many on every rank: the ranks' mean is that of all rows."""
    return _Ring.apply(normalize(x.anchor, dim=1), normalize(x.positive, dim=1), x.labels, group).mean()


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, p: Tensor, labels: Tensor, group: dist.ProcessGroup) -> Tensor:
        positive = (z * p).sum(dim=1) / TEMPERATURE
        lse = positive.clone()
        block, block_labels = z, labels
        world = dist.get_world_size(group)
        for step in range(world):
            passed = _Passing([block, block_labels], group) if step < world - 1 else None
            similarities = _similarities(z, labels, block, block_labels, own=step == 0)
            lse = torch.logaddexp(lse, similarities.logsumexp(dim=1))
            if passed is not None:
                block, block_labels = passed.received()
        ctx.save_for_backward(z, p, labels, lse)
        ctx.group = group
        return lse - positive

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, p, labels, lse = ctx.saved_tensors
        positive = (z * p).sum(dim=1) / TEMPERATURE
        of_positive = (upstream * ((positive - lse).exp() - 1) / TEMPERATURE)[:, None]
        d_z = of_positive * p
        block, block_labels, d_block = z, labels, torch.zeros_like(z)
        world = dist.get_world_size(ctx.group)
        for step in range(world):
            passed = _Passing([block, block_labels], ctx.group) if step < world - 1 else None
            similarities = _similarities(z, labels, block, block_labels, own=step == 0)
            weights = (similarities - lse[:, None]).exp() * (upstream[:, None] / TEMPERATURE)
            d_z += weights @ block
            d_block += weights.T @ z
            if world > 1:
                (d_block,) = _Passing([d_block], ctx.group).received()
            if passed is not None:
                block, block_labels = passed.received()
        return d_z + d_block, of_positive * z, None, None


def _similarities(z: Tensor, labels: Tensor, block: Tensor, block_labels: Tensor, own: bool) -> Tensor:
    """Those of own rows with a block's, −∞ where the classes differ, and of a row with itself."""
    similarities = z @ block.T / TEMPERATURE
    negative = labels[:, None] == block_labels
    if own:
        negative.fill_diagonal_(False)
    return similarities.masked_fill_(~negative, -torch.inf)


class _Passing:
    """Tensors on their way to the next rank, while as many of the same shapes come from the one before."""

    def __init__(self, tensors: list[Tensor], group: dist.ProcessGroup) -> None:
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        after, before = (dist.get_global_rank(group, (rank + step) % world) for step in (1, -1))
        self._sent = [x.contiguous() for x in tensors]
        self._received = [torch.empty_like(x) for x in self._sent]
        sends = [dist.P2POp(dist.isend, x, after, group) for x in self._sent]
        receives = [dist.P2POp(dist.irecv, x, before, group) for x in self._received]
        self._works = dist.batch_isend_irecv([*sends, *receives])

    def received(self) -> list[Tensor]:
        for work in self._works:
            work.wait()
        return self._received
