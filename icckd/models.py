"""The networks: images → (features, logits).

Two families, for images of any size and number of channels:

- CIFAR-style residual networks (He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2), with
  the 1×1 convolutions in the shortcuts and the ×4 widths that the distillation literature uses (Tian et al.,
  "Contrastive Representation Distillation", 2020).
- `convnet-large` and `convnet-small`, this project's own teacher and student for training on a CPU.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from icckd.errors import UserError


class Model(nn.Module):
    """A classifier: `trunk`, then `classifier` on the trunk's output averaged over all positions.

    `forward` takes float images (B, channels, H, W) and returns features (B, feature_dim), which follow a ReLU and so
    are never negative, and logits (B, classes). The convolutions take any H and W; `image_size` says which size the
    model is meant for.
    """

    def __init__(self, arch: str, trunk: nn.Module, feature_dim: int, channels: int, classes: int, image_size: int):
        super().__init__()
        self.arch = arch
        self.channels = channels
        self.classes = classes
        self.image_size = image_size
        self.feature_dim = feature_dim
        self.trunk = trunk
        self.classifier = nn.Linear(feature_dim, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images).mean(dim=(2, 3))
        return features, self.classifier(features)


def build_model(arch: str, *, channels: int, classes: int, image_size: int) -> Model:
    """A new network with random weights, determined by `torch.manual_seed`.

    Convolutions are drawn from He et al.'s normal distribution (fan-out); normalisations start as the identity.
    Raises UserError for an unknown `arch`, ValueError where `channels`, `classes` or `image_size` is below 1.
    """
    if arch not in _TRUNKS:
        raise UserError(f"arch is {arch!r}; it should be one of {', '.join(ARCHITECTURES)}")
    for name, value in (("channels", channels), ("classes", classes), ("image_size", image_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it should be 1 or more")
    trunk, feature_dim = _TRUNKS[arch](channels)
    model = Model(arch, trunk, feature_dim, channels, classes, image_size)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            # With weights in this order, and so outputs too, a CPU's convolutions are up to twice as fast.
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return model


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first of a network's tensors that holds a number that is not finite, and how many more do; "" for none."""
    if not tensors:
        return ""
    # Stacked, so that a GPU is waited for once.
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    names = [name for name, right in zip(tensors, finite, strict=True) if not right]
    return "".join(names[:1]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions added to their input, which a 1×1 convolution fits where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.convolution1 = _convolution(channels_in, channels_out, stride)
        self.convolution2 = _convolution(channels_out, channels_out)
        same_shape = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same_shape else _convolution(channels_in, channels_out, stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.shortcut(x) + self.convolution2(relu(self.convolution1(x))))


class ConvBlock(nn.Module):
    """A 3×3 convolution and 2×2 max-pooling, which keeps the last row and column of an odd size."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.convolution = _convolution(channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        # Pooling before the ReLU gives the same values, and a quarter of them to rectify.
        return relu(max_pool2d(self.convolution(x), 2, ceil_mode=True))


def _convolution(channels_in: int, channels_out: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    """A convolution without bias, batch-normalised."""
    convolution = nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


def _resnet(channels: int, depth: int, widths: tuple[int, int, int, int]) -> tuple[nn.Module, int]:
    """A stem of widths[0] channels, then three stages of (depth − 2) / 6 blocks; the last two stages halve the size."""
    layers: list[nn.Module] = [_convolution(channels, widths[0]), nn.ReLU(inplace=True)]
    for stage in range(3):
        for block in range((depth - 2) // 6):
            first = block == 0
            stride = 2 if first and stage > 0 else 1
            layers.append(BasicBlock(widths[stage if first else stage + 1], widths[stage + 1], stride))
    return nn.Sequential(*layers), widths[3]


def _convnet(channels: int, widths: tuple[int, ...]) -> tuple[nn.Module, int]:
    sizes = (channels, *widths)
    return nn.Sequential(*(ConvBlock(a, b) for a, b in zip(sizes, widths, strict=False))), widths[-1]


_TRUNKS: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    **{f"resnet{d}": partial(_resnet, depth=d, widths=(16, 16, 32, 64)) for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{d}x4": partial(_resnet, depth=d, widths=(32, 64, 128, 256)) for d in (8, 32)},
    "convnet-large": partial(_convnet, widths=(32, 64, 128)),
    "convnet-small": partial(_convnet, widths=(8, 16, 32)),
}

ARCHITECTURES: tuple[str, ...] = tuple(sorted(_TRUNKS))
