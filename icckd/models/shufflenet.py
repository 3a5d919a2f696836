"""`shufflenetv1` (Zhang et al., "ShuffleNet", arXiv 1707.01083; groups of 3, width 1) and `shufflenetv2` (Ma et al.,
"ShuffleNet V2", arXiv 1807.11164; width 1).

With a 1×1 stem of 24 channels that keeps the size, for small images, as in the distillation literature, whose version 1
also has a ReLU after the depthwise convolution.
"""

import re

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from icckd.models.layers import convolution
from icckd.models.model import Stages
from icckd.models.registry import Rules, register

_BLOCKS = (4, 8, 4)
_STEM_WIDTH = 24
_GROUPS = 3


class ShuffleBlock1(nn.Module):
    """Grouped 1×1, depthwise 3×3 and grouped 1×1 convolutions, channels shuffled after the first.

    The result is added to the input; where the size is halved, concatenated with the input's average over 3×3.
    """

    def __init__(self, channels_in: int, channels_out: int, halves: bool):
        super().__init__()
        self.halves = halves
        own = channels_out - channels_in if halves else channels_out
        self.groups = 1 if channels_in == _STEM_WIDTH else _GROUPS
        self.convolution1 = convolution(channels_in, own // 4, size=1, groups=self.groups)
        self.convolution2 = convolution(own // 4, own // 4, 2 if halves else 1, groups=own // 4)
        self.convolution3 = convolution(own // 4, own, size=1, groups=_GROUPS)

    def forward(self, x: Tensor) -> Tensor:
        y = _shuffle(relu(self.convolution1(x)), self.groups)
        y = self.convolution3(relu(self.convolution2(y)))
        if self.halves:
            return relu(torch.cat([y, avg_pool2d(x, 3, stride=2, padding=1)], dim=1))
        return relu(y + x)


class ShuffleBlock2(nn.Module):
    """1×1, depthwise 3×3 and 1×1 convolutions of half the channels; the other half passes; then all are shuffled.

    Where the size is halved, both halves are computed from all of the input, the left one by a depthwise 3×3 and a 1×1.
    """

    def __init__(self, channels_in: int, channels_out: int, halves: bool):
        super().__init__()
        half, stride = channels_out // 2, 2 if halves else 1
        self.left: nn.Module | None = None
        if halves:
            depthwise = convolution(channels_in, channels_in, stride, groups=channels_in)
            self.left = nn.Sequential(depthwise, convolution(channels_in, half, size=1), nn.ReLU(inplace=True))
        self.right = nn.Sequential(
            convolution(channels_in if halves else half, half, size=1),
            nn.ReLU(inplace=True),
            convolution(half, half, stride, groups=half),
            convolution(half, half, size=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1) if self.left is None else (self.left(x), x)
        return _shuffle(torch.cat([left, self.right(right)], dim=1), 2)


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """The channels of (B, C, H, W) dealt out: the first of each of `groups` equal parts, then the second of each, …"""
    return x if groups == 1 else x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _published1(arch: str, image_size: int) -> Rules:
    return [
        (r"^conv1\.", "stem.0.0."),
        (r"^bn1\.", "stem.0.1."),
        (r"^layer(\d)\.", r"stage\1."),
        (r"\.conv(\d)\.", r".convolution\1.0."),
        (r"\.bn(\d)\.", r".convolution\1.1."),
        (r"^linear\.", "classifier."),
    ]


def _published2(arch: str, image_size: int) -> Rules:
    halving = {"1": "left.0", "2": "left.1", "3": "right.0", "4": "right.2", "5": "right.3"}
    others = {"1": "right.0", "2": "right.2", "3": "right.3"}

    def place(match: re.Match[str]) -> str:
        stage, block, kind, number = match.groups()
        layer = (halving if block == "0" else others).get(number, number)
        return f"stage{stage}.{block}.{layer}.{0 if kind == 'conv' else 1}."

    return [
        (r"^layer(\d)\.(\d+)\.(conv|bn)(\d)\.", place),
        (r"^conv1\.", "stem.0.0."),
        (r"^bn1\.", "stem.0.1."),
        (r"^conv2\.", "head.0.0."),
        (r"^bn2\.", "head.0.1."),
        (r"^linear\.", "classifier."),
    ]


@register("shufflenetv1", published=_published1)
def shufflenetv1(arch: str, channels: int, image_size: int) -> Stages:
    """The stem, then three stages that halve the size."""
    return Stages(960, _stages(ShuffleBlock1, (240, 480, 960)), stem=_stem(channels))


@register("shufflenetv2", published=_published2)
def shufflenetv2(arch: str, channels: int, image_size: int) -> Stages:
    """The stem, three stages that halve the size, and a 1×1 convolution to 1024 channels."""
    head = [convolution(464, 1024, size=1), nn.ReLU(inplace=True)]
    return Stages(1024, _stages(ShuffleBlock2, (116, 232, 464)), stem=_stem(channels), head=head)


def _stem(channels: int) -> list[nn.Module]:
    return [convolution(channels, _STEM_WIDTH, size=1), nn.ReLU(inplace=True)]


def _stages(block: type[ShuffleBlock1] | type[ShuffleBlock2], widths: tuple[int, ...]) -> list[list[nn.Module]]:
    stages: list[list[nn.Module]] = []
    before = _STEM_WIDTH
    for width, blocks in zip(widths, _BLOCKS, strict=True):
        stages.append([block(before, width, True), *(block(width, width, False) for _ in range(blocks - 1))])
        before = width
    return stages
