"""An exponential moving average of a network in training."""

import copy

import torch
from torch import Tensor, nn

from icckd.distributed.parts import own_part


class MovingAverage(nn.Module):
    """A copy of `network` that follows it: x ← decay · x + (1 − decay) · x of the network, at each update.

    x are parameters and running statistics, as of the teacher of "Mean teachers" (arXiv 1703.01780); the copy starts as
    the network is. It only answers: without gradient, in evaluation mode. Nothing here waits for a GPU, unlike
    torch.optim.swa_utils.AveragedModel, whose update reads a count.
    """

    def __init__(self, network: nn.Module, decay: float):
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay

    def train(self, mode: bool = True) -> "MovingAverage":
        """It stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, network: nn.Module, taken: Tensor) -> None:
        """Move towards `network`, if `taken`, 0-dim bool."""
        averages = _numbers(self.network)
        steps = torch._foreach_sub(_numbers(network), averages)
        torch._foreach_mul_(steps, taken * (1 - self.decay))
        torch._foreach_add_(averages, steps)


def _numbers(network: nn.Module) -> list[Tensor]:
    return [own_part(x) for x in (*network.parameters(), *network.buffers()) if x.is_floating_point()]
