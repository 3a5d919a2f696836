"""`convnet-large` and `convnet-small`: this project's own teacher and student for training on a CPU."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from icckd.models.layers import convolution
from icckd.models.model import Stages
from icckd.models.registry import register

_WIDTHS = {"convnet-large": (32, 64, 128), "convnet-small": (8, 16, 32)}


class ConvBlock(nn.Module):
    """A 3×3 convolution and 2×2 max-pooling, which keeps the last row and column of an odd size."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.convolution = convolution(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        # Pooling before the ReLU gives the same values, and a quarter of them to rectify.
        return relu(max_pool2d(self.convolution(x), 2, ceil_mode=True))


@register(*_WIDTHS)
def convnet(arch: str, channels: int, image_size: int) -> Stages:
    """Three stages of a block each, every one of which halves the size."""
    widths = _WIDTHS[arch]
    return Stages(widths[-1], [[ConvBlock(before, width)] for before, width in pairwise((channels, *widths))])
