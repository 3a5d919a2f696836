"""CIFAR-style residual networks: He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), §4.2.

With the 1×1 convolutions in the shortcuts and the ×4 widths that the distillation literature uses (Tian et al.,
"Contrastive Representation Distillation", arXiv 1910.10699).
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from icckd.models.layers import convolution
from icckd.models.model import Stages
from icckd.models.registry import Rules, register

_WIDTHS = {
    **dict.fromkeys((f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)), (16, 16, 32, 64)),
    **dict.fromkeys(("resnet8x4", "resnet32x4"), (32, 64, 128, 256)),
}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions added to their input, which a 1×1 convolution fits where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.convolution1 = convolution(channels_in, channels_out, stride)
        self.convolution2 = convolution(channels_out, channels_out)
        self.shortcut = shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.shortcut(x) + self.convolution2(relu(self.convolution1(x))))


def shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """The identity, or a 1×1 convolution where the shape changes."""
    same_shape = stride == 1 and channels_in == channels_out
    return nn.Identity() if same_shape else convolution(channels_in, channels_out, stride, size=1)


def published(arch: str, image_size: int) -> Rules:
    """Rules for residual networks with torchvision's names of tensors, or with `shortcut` and `linear` in them."""
    return [
        (r"^conv1\.", "stem.0.0."),
        (r"^bn1\.", "stem.0.1."),
        (r"^layer(\d)\.", r"stage\1."),
        (r"\.conv(\d)\.", r".convolution\1.0."),
        (r"\.bn(\d)\.", r".convolution\1.1."),
        (r"\.downsample\.", ".shortcut."),
        (r"^(fc|linear)\.", "classifier."),
    ]


@register(*_WIDTHS, published=published)
def resnet(arch: str, channels: int, image_size: int) -> Stages:
    """A stem, then three stages of (depth − 2) / 6 blocks; the last two stages halve the size."""
    widths = _WIDTHS[arch]
    blocks = (int(arch.removeprefix("resnet").removesuffix("x4")) - 2) // 6
    stages = []
    for stage in (1, 2, 3):
        first = BasicBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
        stages.append([first, *(BasicBlock(widths[stage], widths[stage], 1) for _ in range(blocks - 1))])
    return Stages(widths[3], stages, stem=[convolution(channels, widths[0]), nn.ReLU(inplace=True)])
