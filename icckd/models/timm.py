"""`timm:NAME`: the networks of timm (Wightman, "PyTorch Image Models", github.com/huggingface/pytorch-image-models).

They need the extra `timm`, start from timm's random weights (nothing is downloaded), and have as features what timm
pools for its own classifiers. Their stages are those that timm's `forward_intermediates` counts, its stem included
where it counts that: stage1, stage2 and so on; networks without it have none.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from icckd.errors import UserError, reason
from icckd.models.model import Trunk
from icckd.models.registry import register


class TimmTrunk(Trunk):
    """A network of timm without its classifier."""

    def __init__(self, network: Any, feature_dim: int):
        super().__init__()
        self.feature_dim = feature_dim
        count = len(network.feature_info) if hasattr(network, "forward_intermediates") else 0
        self.stage_names = tuple(f"stage{number}" for number in range(1, count + 1))
        self.network = network

    def forward(self, images: Tensor, stages: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        if not stages:
            return self.network(images), {}
        wanted = self._numbers(stages)
        last, maps = self.network.forward_intermediates(images, indices=wanted, output_fmt="NCHW")
        return self.network.forward_head(last), {self.stage_names[n]: x for n, x in zip(wanted, maps, strict=True)}

    def maps(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        wanted = self._numbers(stages)
        maps = self.network.forward_intermediates(
            images, indices=wanted, output_fmt="NCHW", stop_early=True, intermediates_only=True
        )
        return {self.stage_names[n]: x for n, x in zip(wanted, maps, strict=True)}

    def _numbers(self, stages: Sequence[str]) -> list[int]:
        return [number for number, name in enumerate(self.stage_names) if name in stages]


@register("timm:")
def timm_network(arch: str, channels: int, image_size: int) -> TimmTrunk:
    """The network that `timm.create_model` makes. Raises UserError where timm is missing, or has none for it."""
    timm = _timm(arch)
    name = arch.removeprefix("timm:")
    if not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"arch is {arch!r}; timm has no network {name}, timm.list_models() has all{hint}")
    try:
        network = _create(timm, name, channels, image_size)
        # Only by trying does one know which sizes it takes, and how many features it has.
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, channels, image_size, image_size))
    except Exception as error:  # Of any kind: each network of timm has a failure of its own.
        raise UserError(
            f"timm's {name} does not take {channels} channels of {image_size} pixels: {reason(error)}"
        ) from error
    return TimmTrunk(network.train(), features.shape[1])


def _create(timm: ModuleType, name: str, channels: int, image_size: int) -> Any:
    options = {"pretrained": False, "in_chans": channels, "num_classes": 0}
    try:
        return timm.create_model(name, img_size=image_size, **options)
    except TypeError:  # Most networks take any size, and no such argument.
        return timm.create_model(name, **options)


def _timm(arch: str) -> ModuleType:
    try:
        import timm
    except Exception as error:  # Beside a torchvision that does not fit torch, it is no ImportError.
        raise UserError(
            f"arch is {arch!r}, which needs timm, and that cannot be imported ({reason(error)}): "
            "pip install 'icckd[timm]'"
        ) from error
    return timm
