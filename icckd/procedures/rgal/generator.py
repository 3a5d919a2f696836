"""The network that makes images from noise."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, sigmoid

# Up to so many pixels a side an image begins; every layer after that doubles its size.
_BEGINNING = 8
_HIDDEN_LAYERS = 2
_SLOPE = 0.2


class Generator(nn.Module):
    """Noise (B, noise) → pixels (B, channels, size, size) in (0, 1), after DCGAN (arXiv 1511.06434).

    A linear layer makes maps of at most 8×8 pixels. Hidden layers enlarge them to twice their size or, for the last, to
    `size`, two or more of them, each with a 3×3 convolution, batch normalisation and leaky ReLU; one more convolution
    and a sigmoid give the pixels. Enlarging instead of transposed convolutions (Odena et al. 2016) takes any size and
    leaves no grid. Normalisations are by the batch and keep no statistics: the generator is only asked while it learns.

    Args:
        noise: Random numbers of an image.
        width: Channels of the last hidden layer; the others have twice as many.
        channels: Those of the images.
        size: Their pixels a side, 8 or more.
    """

    def __init__(self, noise: int, width: int, channels: int, size: int):
        super().__init__()
        self.sizes = sizes_of(size)
        first = self.sizes[0]
        self.begin = nn.Linear(noise, 2 * width * first**2)
        self.normalise = _normalisation(2 * width)
        widths = [2 * width] * (len(self.sizes) - 1) + [width]
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), _normalisation(after))
            for before, after in pairwise(widths)
        )
        self.end = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, noise: Tensor) -> Tensor:
        maps = self.normalise(self.begin(noise).unflatten(1, (-1, self.sizes[0], self.sizes[0])))
        for size, layer in zip(self.sizes[1:], self.hidden, strict=True):
            maps = leaky_relu(layer(interpolate(maps, size=(size, size))), _SLOPE)
        return sigmoid(self.end(maps))


def sizes_of(size: int) -> Sequence[int]:
    """Pixels a side of the maps from the first on: each half of the next, rounded up, and the last is `size`."""
    sizes = [size]
    while sizes[0] > _BEGINNING or len(sizes) <= _HIDDEN_LAYERS:
        sizes.insert(0, -(-sizes[0] // 2))
    return sizes


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as uint8, rounded."""
    return (pixels * 255).round().to(torch.uint8)


def _normalisation(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)
