"""ImageNet-style residual networks: He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), §4.1.

Up to 64 pixels the stem is a 3×3 convolution that keeps the size, as small images need it and the distillation
literature has it; above, the paper's 7×7 of stride 2 with a max-pool. A bottleneck's stride is at its 3×3 convolution,
as in torchvision and the distillation literature (in the paper, at the first 1×1).
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from icckd.models.layers import convolution
from icckd.models.model import Stages
from icckd.models.registry import register
from icckd.models.resnet import BasicBlock, published, shortcut

_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, the first two a quarter as wide, added to their input as in `BasicBlock`."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        width = channels_out // 4
        self.convolution1 = convolution(channels_in, width, size=1)
        self.convolution2 = convolution(width, width, stride)
        self.convolution3 = convolution(width, channels_out, size=1)
        self.shortcut = shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.convolution2(relu(self.convolution1(x))))
        return relu(self.shortcut(x) + self.convolution3(y))


@register(*_BLOCKS, published=published)
def resnet_imagenet(arch: str, channels: int, image_size: int) -> Stages:
    """A stem of 64 channels, then four stages, of which the last three halve the size and double the width."""
    block, expansion = (Bottleneck, 4) if arch == "resnet50" else (BasicBlock, 1)
    stages, before = [], 64
    for stage, blocks in enumerate(_BLOCKS[arch]):
        width = 64 * 2**stage * expansion
        first = block(before, width, 1 if stage == 0 else 2)
        stages.append([first, *(block(width, width, 1) for _ in range(blocks - 1))])
        before = width
    large = image_size > 64
    stem = [convolution(channels, 64, *((2, 7) if large else (1, 3))), nn.ReLU(inplace=True)]
    return Stages(before, stages, stem=[*stem, nn.MaxPool2d(3, stride=2, padding=1)] if large else stem)
