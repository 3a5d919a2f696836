"""Wide residual networks `wrn_DEPTH_WIDTH`: Zagoruyko and Komodakis, "Wide Residual Networks" (arXiv 1605.07146).

Their blocks are pre-activated: normalisation and ReLU come before each convolution. A block that changes the width
gives the activated value to its shortcut too, so its first normalisation and ReLU stand at the end of the part before
it: a stage's map is what they return, and the last map what the last normalisation and ReLU return.
"""

from torch import Tensor, nn

from icckd.models.model import Stages
from icckd.models.registry import Rules, register


class PreActivatedBlock(nn.Module):
    """Normalisation, ReLU and 3×3 convolution, twice, added to the input, whose shape they keep."""

    def __init__(self, channels: int):
        super().__init__()
        self.activation1 = _activation(channels)
        self.convolution1 = _convolution(channels, channels)
        self.activation2 = _activation(channels)
        self.convolution2 = _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution2(self.activation2(self.convolution1(self.activation1(x))))


class WideningBlock(nn.Module):
    """3×3 convolution, normalisation, ReLU and 3×3 convolution, added to a 1×1 convolution of the activated input."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.convolution1 = _convolution(channels_in, channels_out, stride)
        self.activation2 = _activation(channels_out)
        self.convolution2 = _convolution(channels_out, channels_out)
        self.shortcut = _convolution(channels_in, channels_out, stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.convolution2(self.activation2(self.convolution1(x)))


def _activation(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _convolution(channels_in: int, channels_out: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False)


def _shape(arch: str) -> tuple[int, int]:
    """The number of blocks in a stage, and how many times wider than a stem of 16 channels the first stage is."""
    _, depth, widening = arch.split("_")
    return (int(depth) - 4) // 6, int(widening)


def _published(arch: str, image_size: int) -> Rules:
    blocks, widening = _shape(arch)
    widened = [(r"^block1\.layer\.0\.bn1\.", "stem.1.0.")] if widening > 1 else []
    return [
        *widened,
        (r"^block([23])\.layer\.0\.bn1\.", lambda match: f"stage{int(match[1]) - 1}.{blocks}.0."),
        (r"^bn1\.", f"stage3.{blocks}.0."),
        (r"^conv1\.", "stem.0."),
        (r"^block(\d)\.layer\.", r"stage\1."),
        (r"\.bn(\d)\.", r".activation\1.0."),
        (r"\.conv(\d)\.", r".convolution\1."),
        (r"\.convShortcut\.", ".shortcut."),
        (r"^fc\.", "classifier."),
    ]


@register("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2", published=_published)
def wide_resnet(arch: str, channels: int, image_size: int) -> Stages:
    """A stem of 16 channels, then three stages of (depth − 4) / 6 blocks; the last two stages halve the size."""
    blocks, widening = _shape(arch)
    widths = (16, 16 * widening, 32 * widening, 64 * widening)
    stem: list[nn.Module] = [_convolution(channels, 16)]
    if widening > 1:
        stem.append(_activation(16))
    stages = []
    for stage in (1, 2, 3):
        before, width = widths[stage - 1], widths[stage]
        same_shape = before == width
        first = PreActivatedBlock(width) if same_shape else WideningBlock(before, width, 1 if stage == 1 else 2)
        others = (PreActivatedBlock(width) for _ in range(blocks - 1))
        stages.append([first, *others, _activation(width)])
    return Stages(widths[3], stages, stem=stem)
