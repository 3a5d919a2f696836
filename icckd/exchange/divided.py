"""What is divided among ranks item by item: item i is at rank i mod ranks, its number i // ranks there."""

import torch
import torch.distributed as dist
from torch import Tensor


def whole(part: Tensor, items: int, group: dist.ProcessGroup) -> Tensor | None:
    """All items (items, …) on the CPU for the first rank, None for the others, of which all call this.

    part: (⌈items / ranks⌉, …), this rank's; of those of others one at a time is on the first's device.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    part = part.contiguous()
    if rank:
        dist.send(part.view(torch.uint8), group=group, group_dst=0)
        return None
    result = torch.empty(items, *part.shape[1:], dtype=part.dtype)
    received = torch.empty_like(part)
    for other in range(ranks):
        if other:
            dist.recv(received.view(torch.uint8), group=group, group_src=other)
        places = result[other::ranks]
        places.copy_((received if other else part)[: len(places)])
    return result
