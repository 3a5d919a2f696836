"""`mobilenetv2_half`: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381).

At half width, with ReLU instead of ReLU6 and with strides for images of 32 pixels, as in the distillation literature.
Blocks end in a convolution without activation, and so do the maps of stages.
"""

import re

from torch import Tensor, nn

from icckd.models.layers import convolution
from icckd.models.model import Stages
from icckd.models.registry import Rules, register

# For each stage, groups of blocks: how much wider a block is inside, its output's width, the number of blocks, and the
# stride of the first. The widths are half of the paper's.
_GROUPS = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)


class InvertedResidual(nn.Module):
    """A 1×1 convolution that widens, a depthwise 3×3, a 1×1 without activation; added to an input of equal shape."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int):
        super().__init__()
        inside = channels_in * expansion
        self.adds = stride == 1 and channels_in == channels_out
        self.residual = nn.Sequential(
            *convolution(channels_in, inside, size=1),
            nn.ReLU(inplace=True),
            *convolution(inside, inside, stride, groups=inside),
            nn.ReLU(inplace=True),
            *convolution(inside, channels_out, size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.residual(x) if self.adds else self.residual(x)


def _published(arch: str, image_size: int) -> Rules:
    places = []
    for stage, groups in enumerate(_GROUPS, 1):
        before = 0
        for _, _, blocks, _ in groups:
            places.append((stage, before))
            before += blocks

    def place(match: re.Match[str]) -> str:
        group, block = int(match[1]), int(match[2])
        if group >= len(places):
            return match[0]
        stage, before = places[group]
        return f"stage{stage}.{before + block}."

    return [
        (r"^conv1\.", "stem.0."),
        (r"^blocks\.(\d+)\.(\d+)\.", place),
        (r"\.conv\.", ".residual."),
        (r"^conv2\.", "head.0."),
        (r"^classifier\.0\.", "classifier."),
    ]


@register("mobilenetv2_half", published=_published)
def mobilenetv2_half(arch: str, channels: int, image_size: int) -> Stages:
    """A stem that halves the size, four stages, of which the last three halve it again, and a head of 1280 channels."""
    stages, before = [], 16
    for groups in _GROUPS:
        blocks = []
        for expansion, width, count, stride in groups:
            for number in range(count):
                blocks.append(InvertedResidual(before, width, stride if number == 0 else 1, expansion))
                before = width
        stages.append(blocks)
    stem = nn.Sequential(*convolution(channels, 16, stride=2), nn.ReLU(inplace=True))
    head = nn.Sequential(*convolution(before, 1280, size=1), nn.ReLU(inplace=True))
    return Stages(1280, stages, stem=[stem], head=[head])
