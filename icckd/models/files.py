"""Trained networks on disk: model.safetensors (the weights) and model.json (what they are weights of); others' too."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from icckd.environment import versions
from icckd.errors import UserError, reason
from icckd.files import is_utf8, write_json, write_whole
from icckd.models.model import Model, build_model, not_finite
from icckd.models.published import load_published

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
# Of the inputs of networks.
_LARGEST_CHANNELS, _LARGEST_SIDE, _LARGEST_LENGTH = 256, 1024, 1 << 16


@dataclass
class ModelDescription:
    """What model.json says: the network, the classes in order, and how its input images are normalised.

    `image_size` is pixels a side, or height and width: of signals 1 and their length. `mean` and `std` are per channel,
    of images scaled to [0, 1], of signals as they are.
    """

    arch: str
    classes: list[str]
    channels: int
    image_size: int | list[int]
    mean: list[float]
    std: list[float]
    parameters: int = 0
    versions: dict[str, str] = field(default_factory=versions)


def save_model(folder: Path, model: Model, description: ModelDescription) -> None:
    """Write `model` and its description to `folder`, each file whole or not at all."""
    description.parameters = sum(p.numel() for p in model.parameters())
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_json(folder / DESCRIPTION, asdict(description))
    write_whole(folder / WEIGHTS, lambda temporary: save_file(tensors, temporary))


def is_state_dict(path: Path) -> bool:
    """Whether `path` is a file that can only be another project's: it does not end in .safetensors."""
    return path.is_file() and path.suffix != Path(WEIGHTS).suffix


def load_model(path: Path, published_as: ModelDescription | None = None) -> tuple[Model, ModelDescription]:
    """The network saved at `path`, a folder that `save_model` wrote or the model.safetensors in it, on the CPU.

    Or another project's state dict (`is_state_dict`), which says nothing of its network: `published_as` is then the
    description returned. Raises UserError where a file is missing or broken, does not fit the description, or holds a
    number that is not finite.
    """
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        raise UserError(f"{weights} does not exist; give a run's teacher/ folder or its {WEIGHTS}")
    if is_state_dict(path):
        if published_as is None:
            raise UserError(f"{path} is another project's file, which does not say what network it holds")
        description, read = published_as, load_published
    else:
        description, read = read_description(weights.with_name(DESCRIPTION)), _load_weights
    classes = len(description.classes)
    try:
        model = build_model(description.arch, description.channels, classes, description.image_size)
    except UserError as error:
        raise UserError(f"the network of {path}: {error}") from error
    read(model, weights)
    spoilt = not_finite(model.state_dict())
    if spoilt:
        raise UserError(f"{weights} holds numbers that are not finite, in {spoilt}; its training diverged")
    return model, description


def _load_weights(model: Model, path: Path) -> None:
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} does not hold the weights that {DESCRIPTION} describes: {reason(error)}") from error


def file_digest(path: Path) -> str:
    """The SHA-256 of the files that `load_model` reads at `path`."""
    weights = path / WEIGHTS if path.is_dir() else path
    content = hashlib.sha256()
    for file in (weights,) if is_state_dict(path) else (weights, weights.with_name(DESCRIPTION)):
        content.update(hashlib.sha256(file.read_bytes()).digest())
    return f"sha256 {content.hexdigest()}"


def read_description(path: Path) -> ModelDescription:
    """The description in `path`, a model.json. Raises UserError where it is missing or not one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; it belongs beside {WEIGHTS}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {' '.join(str(error).split())[:120]}") from error
    problem = _problem(values)
    if problem:
        raise UserError(f"{path} does not describe a model of this tool: {problem}")
    return ModelDescription(**{name: values[name] for name in ModelDescription.__dataclass_fields__})


def _problem(values: Any) -> str | None:
    if not isinstance(values, dict):
        return "it is not an object"
    missing = ModelDescription.__dataclass_fields__.keys() - values.keys()
    if missing:
        return f"it lacks {', '.join(sorted(missing))}"
    classes, channels, size = values["classes"], values["channels"], values["image_size"]
    if not isinstance(values["arch"], str):
        return "arch is not a string"
    if not (isinstance(classes, list) and len(classes) >= 2 and all(map(_is_name, classes))):
        return "classes is not a list of two or more names"
    if not _is_count(channels, _LARGEST_CHANNELS):
        return f"channels is not a whole number in [1, {_LARGEST_CHANNELS}]"
    of_signals = isinstance(size, list) and len(size) == 2 and size[0] == 1 and _is_count(size[1], _LARGEST_LENGTH)
    if not (_is_count(size, _LARGEST_SIDE) or of_signals):
        return f"image_size is not a whole number in [1, {_LARGEST_SIDE}], nor [1, a length up to {_LARGEST_LENGTH}]"
    for name in ("mean", "std"):
        value = values[name]
        numbers = isinstance(value, list) and all(isinstance(v, (int, float)) for v in value)
        if not numbers or len(value) != channels or not all(map(math.isfinite, value)):
            return f"{name} is not one finite number per channel"
    return "std has a value that is not above 0" if min(values["std"]) <= 0 else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and is_utf8(value)


def _is_count(value: Any, largest: int) -> bool:
    return isinstance(value, int) and 1 <= value <= largest
