"""A peer: gather everybody's rows with gradients, and compare own rows with all of them, whatever their class.

So do the common multi-GPU contrastive losses, open_clip's among them: O(N·D) numbers reach every rank, and each has a
matrix of its rows with all N.
"""

import warnings

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize

from icckd.bench.peers import TEMPERATURE, Inputs


def all_gather(x: Inputs, group: dist.ProcessGroup) -> Tensor:
    """The mean loss of own rows, each an anchor. Equally many on every rank: the ranks' mean is that of all rows."""
    z, p = normalize(x.anchor, dim=1), normalize(x.positive, dim=1)
    rows, labels = _gathered_with_gradient(z, group), _gathered(x.labels, group)
    positive = (z * p).sum(dim=1, keepdim=True) / TEMPERATURE
    similarities = z @ rows.T / TEMPERATURE
    own = len(z) * dist.get_rank(group) + torch.arange(len(z), device=z.device)
    negative = (x.labels[:, None] == labels).scatter(1, own[:, None], False)
    similarities = similarities.masked_fill(~negative, -torch.inf)
    return (torch.cat([positive, similarities], dim=1).logsumexp(dim=1) - positive[:, 0]).mean()


def _gathered_with_gradient(z: Tensor, group: dist.ProcessGroup) -> Tensor:
    from torch.distributed.nn.functional import all_gather as gather_with_gradient

    with warnings.catch_warnings():
        # PyTorch has a successor for compiled code; this is the one that such losses call.
        warnings.simplefilter("ignore", FutureWarning)
        return torch.cat(gather_with_gradient(z, group))


def _gathered(labels: Tensor, group: dist.ProcessGroup) -> Tensor:
    received = [torch.empty_like(labels) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, labels, group=group)
    return torch.cat(received)
