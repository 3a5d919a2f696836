"""Networks that only answer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icckd.attacks import gradient
from icckd.methods import Outputs
from icckd.models import Model
from icckd.models.modes import evaluating, without_parameter_gradients

_TRIED = 4


def ask(model: nn.Module, images: Tensor, stages: Sequence[str] = ()) -> Outputs:
    """What `model` says about `images`, with the maps of `stages`."""
    if not stages:
        features, logits = model(images)
        return Outputs(features, logits, {})
    return Outputs(*model(images, stages=stages))


def ask_as_it_is(model: nn.Module, images: Tensor, stages: Sequence[str] = ()) -> Outputs:
    """What `model` says in evaluation mode, with gradients that reach `images` alone; nothing of the model changes."""
    with evaluating(model), without_parameter_gradients(model):
        return ask(model, images, stages)


def can_be_attacked(model: Model) -> bool:
    """Have the logits of `model` a gradient with respect to images that is not 0 everywhere, of a few random ones?"""
    random, device = torch.Generator().manual_seed(0), next(model.parameters()).device
    images = torch.randn(_TRIED, *model.image_shape, generator=random).to(device)
    weights = torch.rand(_TRIED, model.classes, generator=random).to(device)
    found = gradient(lambda moved: (ask_as_it_is(model, moved).logits * weights).sum(), images)
    return bool((found.abs() > 0).any())


class FrozenTeacher:
    """A trained network that only answers: normalised images (B, C, H, W) → its outputs, without gradient.

    It is no nn.Module, so that it is neither trained nor saved with the student. `mean` and `std` are the statistics
    per channel that the images come normalised with; the teacher sees them normalised as in its own training.
    """

    def __init__(
        self,
        model: Model,
        own_normalization: tuple[Sequence[float], Sequence[float]],
        normalization: tuple[Sequence[float], Sequence[float]],
    ):
        self.model = model.requires_grad_(False).eval()
        device = next(model.parameters()).device
        own_mean, own_std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in own_normalization)
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in normalization)
        self.scale = std / own_std
        self.shift = (mean - own_mean) / own_std

    def __call__(self, images: Tensor, stages: Sequence[str] = ()) -> Outputs:
        with torch.inference_mode():
            features, logits, maps = self.with_gradient(images, stages)
        # What is made in inference mode cannot be saved for a backward; copies made outside of it can.
        return Outputs(features.clone(), logits.clone(), {name: x.clone() for name, x in maps.items()})

    def with_gradient(self, images: Tensor, stages: Sequence[str] = ()) -> Outputs:
        """The same, with gradients that reach `images`."""
        return ask(self.model, images * self.scale + self.shift, stages)
