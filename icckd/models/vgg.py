"""VGG networks: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(arXiv 1409.1556), for small images as in the distillation literature.

Batch normalisation after every convolution, which has a bias too; one linear layer of 512 instead of the paper's three;
the last max-pool is left out, and the fourth below 64 pixels; `vgg8` has one convolution in each part.
"""

import re

from torch import nn

from icckd.errors import UserError
from icckd.models.layers import convolution
from icckd.models.model import Stages
from icckd.models.registry import Rules, register

_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def _published(arch: str, image_size: int) -> Rules:
    if image_size > 64:
        raise UserError(f"{arch} of other projects pools a fourth time at 64 pixels only; image_size is {image_size}")

    def place(match: re.Match[str]) -> str:
        block, layer = int(match[1]), int(match[2])  # convolution, normalisation and ReLU are counted one by one
        unit = f"{layer // 3}" if block == 0 else f"{layer // 3 + 1}"
        return f"{f'stage{block}' if block else 'stem'}.{unit}.{layer % 3}."

    return [(r"^block(\d)\.(\d+)\.", place)]


@register(*_CONVOLUTIONS, published=_published)
def vgg(arch: str, channels: int, image_size: int) -> Stages:
    """A stem at full size, then four stages that begin with a max-pool, the last from 64 pixels up only."""
    if image_size < 8:
        raise UserError(f"image_size is {image_size}; {arch} halves images three times: it should be 8 or more")
    parts: list[list[nn.Module]] = []
    for width, count in zip(_WIDTHS, _CONVOLUTIONS[arch], strict=True):
        pools = len(parts) in (1, 2, 3) or (len(parts) == 4 and image_size >= 64)
        part: list[nn.Module] = [nn.MaxPool2d(2) if pools else nn.Identity()] if parts else []
        for _ in range(count):
            part.append(nn.Sequential(*convolution(channels, width, bias=True), nn.ReLU(inplace=True)))
            channels = width
        parts.append(part)
    return Stages(_WIDTHS[-1], parts[1:], stem=parts[0])
