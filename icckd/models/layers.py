"""The layer that the families share."""

from torch import nn


def convolution(
    channels_in: int, channels_out: int, stride: int = 1, size: int = 3, groups: int = 1, bias: bool = False
) -> nn.Sequential:
    """A batch-normalised convolution of odd `size`; it keeps H and W, or divides them by `stride`, rounded up."""
    layer = nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, groups=groups, bias=bias)
    return nn.Sequential(layer, nn.BatchNorm2d(channels_out))
