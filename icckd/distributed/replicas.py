"""A network that several processes train: a replica in each, or a part in each."""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from icckd.models import Model

# That buffers stay each rank's own has a new name in newer versions of PyTorch.
_KNOWN = inspect.signature(DistributedDataParallel).parameters
_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers": False
}


class Replicas:
    """`network` as the ranks of `group` train it together: a gradient is the mean of theirs.

    Every rank keeps a replica (DistributedDataParallel), or, `sharded`, a part of every parameter, which are put
    together layer by layer as they are needed (FSDP2, `fully_shard`). `others` are parameters beside the network's,
    which are small and of which every rank has a replica.
    """

    def __init__(self, network: Model, others: list[nn.Parameter], group: dist.ProcessGroup, *, sharded: bool):
        self._group = group
        self._others = others
        self.asked: nn.Module = network
        if sharded:
            shard(network)
        else:
            self.asked = DistributedDataParallel(network, process_group=group, **_OWN_BUFFERS)

    def without_averaging(self) -> AbstractContextManager[Any]:
        """Within, backward leaves the network's gradients as they are on each rank; a later backward averages all."""
        if isinstance(self.asked, DistributedDataParallel):
            return self.asked.no_sync()
        return _unsynchronised(self.asked) if isinstance(self.asked, FSDPModule) else nullcontext()

    def means(self, tensors: list[Tensor]) -> list[Tensor]:
        """The means over the ranks of each of `tensors`, by one exchange; nothing waits for a GPU."""
        whole = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(whole, group=self._group)
        means = (whole / dist.get_world_size(self._group)).split([tensor.numel() for tensor in tensors])
        return [mean.view_as(tensor).to(tensor.dtype) for mean, tensor in zip(means, tensors, strict=True)]

    def average_others(self) -> None:
        """Make the gradients of the other parameters, after backward, the means of the ranks'."""
        if self._others:
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._others]
            for parameter, mean in zip(self._others, self.means(gradients), strict=True):
                parameter.grad = mean


@contextmanager
def _unsynchronised(network: FSDPModule) -> Iterator[None]:
    network.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        network.set_requires_gradient_sync(True)


def shard(network: Model) -> None:
    """Divide the parameters of `network` among all ranks: those of each layer of its trunk together, then the rest."""
    for parameter in network.parameters():
        # It takes them in no other order.
        parameter.data = parameter.data.contiguous(memory_format=torch.contiguous_format)
    mesh = init_device_mesh(next(network.parameters()).device.type, (dist.get_world_size(),))
    layers = [layer for layer in network.trunk.layers() if any(True for _ in layer.parameters())]
    # Those of the whole are parts again after a forward, too: it may be one that no backward follows.
    for part in (*layers, network):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
