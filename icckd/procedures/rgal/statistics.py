"""How far the statistics of some images are from those that a teacher's batch normalisations remember."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from icckd.backends.arithmetic import accumulation_dtype


def normalisations_of(network: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of `network` that remember statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def distances_of_statistics(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within, each pass through `network` adds a distance for each of its batch normalisations to the list.

    ‖μ − running mean‖ + ‖σ² − running variance‖, where μ and σ² are mean and variance, by channel, of what the
    normalisation is given (Yin et al. 2020, arXiv 1912.08795): 0-dim, with gradient to that.
    """
    distances: list[Tensor] = []

    def note(layer: Any, given: tuple[Tensor, ...]) -> None:
        distances.append(_distance(given[0], layer.running_mean, layer.running_var))

    handles = [layer.register_forward_pre_hook(note) for layer in normalisations_of(network)]
    try:
        yield distances
    finally:
        for handle in handles:
            handle.remove()


def _distance(maps: Tensor, running_mean: Tensor, running_variance: Tensor) -> Tensor:
    """Of maps (B, channels, …) and what a normalisation remembers of such, (channels,) each."""
    by_channel = maps.to(accumulation_dtype(maps)).transpose(0, 1).flatten(1)
    variance, mean = torch.var_mean(by_channel, dim=1, correction=0)
    return (mean - running_mean).norm() + (variance - running_variance).norm()
