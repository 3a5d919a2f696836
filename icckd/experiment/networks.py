"""A run's networks: made anew for its data, or read from a file and found to be for these."""

from dataclasses import dataclass
from pathlib import Path

import torch

from icckd.data import ImageData
from icckd.errors import UserError
from icckd.models import ARCHITECTURES, Model, ModelDescription, build_model, is_state_dict, load_model
from icckd.settings import Settings


@dataclass
class Trained:
    """A trained network and what its model.json says."""

    model: Model
    description: ModelDescription


def untrained(stage: str, settings: Settings, data: ImageData) -> Trained:
    """The network of `stage` as its training begins. Raises UserError where it cannot be one for these data."""
    torch.manual_seed(settings.seed)
    description = _description(stage, settings, data)
    try:
        model = build_model(description.arch, description.channels, len(description.classes), description.image_size)
    except UserError as error:
        raise UserError(f"{stage}.arch: {error}") from error
    return Trained(model, description)


def load_teacher(name: str, path: Path, settings: Settings, data: ImageData) -> Trained:
    """The network at `path`. Raises UserError, calling it `name`, where it is not one for these data."""
    if is_state_dict(path):
        ARCHITECTURES.find(settings.teacher.arch, "teacher.arch")
        if not len(data.train_labels) and settings.data.mean is None:
            raise UserError(
                f"data.mean is null, and neither {path} nor a training image, none of which is looked at, says how "
                "images should be normalised; give data.mean and data.std"
            )
    expected = _description("teacher", settings, data)
    model, description = load_model(path, published_as=expected)
    if any(getattr(description, of) != getattr(expected, of) for of in ("classes", "channels", "image_size")):
        raise UserError(
            f"{name} {path} is a network for {len(description.classes)} classes of {_shape(description)}; "
            f"{data.name} has {len(expected.classes)} classes of {_shape(expected)}, or other class names"
        )
    return Trained(model, description)


def _description(stage: str, settings: Settings, data: ImageData) -> ModelDescription:
    """What model.json says of a network of the stage's architecture for these data."""
    _, channels, height, width = data.test_images.shape
    size = width if data.people is None else [height, width]
    arch = getattr(settings, stage).arch
    return ModelDescription(arch, list(data.classes), channels, size, list(data.mean), list(data.std))


def _shape(description: ModelDescription) -> str:
    size = description.image_size
    sides = f"{size}×{size} images" if isinstance(size, int) else f"{size[1]} signals"
    return f"{description.channels}×{sides}"
