"""`signal-convnet` and `signal-convnet-small`: this project's own teacher and student for signals.

Signals are images of height 1. Convolutions are along time alone; of images of another height each row would be taken
for a signal of its own.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from icckd.models.model import Stages
from icckd.models.registry import register

_WIDTHS = {"signal-convnet": (32, 64, 128), "signal-convnet-small": (8, 16, 32)}
_SAMPLES = 5


class SignalBlock(nn.Module):
    """A normalised convolution of 5 samples, and max-pooling of 2, which keeps the last sample of an odd length."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        padding = (0, _SAMPLES // 2)
        self.convolution = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, (1, _SAMPLES), padding=padding, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        # Pooling before the ReLU gives the same values, and half of them to rectify.
        return relu(max_pool2d(self.convolution(x), (1, 2), ceil_mode=True))


@register(*_WIDTHS)
def signal_convnet(arch: str, channels: int, image_size: int) -> Stages:
    """Three stages of a block each, every one of which halves the length."""
    widths = _WIDTHS[arch]
    return Stages(widths[-1], [[SignalBlock(before, width)] for before, width in pairwise((channels, *widths))])
