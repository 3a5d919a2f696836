"""State dicts that other projects published of networks of the same names, read into this package's.

RepDistiller's (github.com/HobbitLong/RepDistiller) and mdistiller's (github.com/megvii-research/mdistiller) of CIFAR
networks, and those with torchvision's names for resnet18, 34 and 50. Each family's file has the rules that rename the
tensors; every tensor must have its place and its shape.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from icckd.errors import UserError
from icckd.models.model import Model
from icckd.models.registry import ARCHITECTURES, Rules

# What training scripts put a network's state dict under, beside the epoch, the optimiser and the like.
_ENTRIES = ("model", "state_dict", "net")


def load_published(model: Model, path: Path) -> None:
    """Load into `model` the state dict in `path`, a file written by `torch.save`, by the rules of the model's family.

    The file holds the state dict itself, or has it under "model", "state_dict" or "net"; tensors may be named with
    "module." before. Nothing is unpickled but tensors and plain values. Raises UserError where the file is none such,
    holds anything else, or does not fit the model.
    """
    published = ARCHITECTURES.find(model.arch, "arch").published
    if published is None:
        raise UserError(f"{path} cannot be read as a {model.arch}: no state dicts of other projects are known of it")
    rules = published(model.arch, model.image_size)
    expected = model.state_dict()
    given: dict[str, Tensor] = {}
    for name, tensor in _state_dict(path).items():
        own = _own_name(model, name, rules)
        if own not in expected or own in given:
            raise _misfit(path, model, f"it has no place for {name}")
        problem = _problem(tensor, expected[own])
        if problem:
            raise _misfit(path, model, f"{name} is {problem}")
        given[own] = tensor
    # Files older than PyTorch 0.4.1 lack the counts, which nothing here uses.
    missing = [name for name in expected.keys() - given.keys() if not name.endswith(".num_batches_tracked")]
    if missing:
        raise _misfit(path, model, f"it lacks {len(missing)} of {len(expected)} tensors, {min(missing)} among them")
    model.load_state_dict(given, strict=False)


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    content = _content(path)
    candidates = [content]
    if isinstance(content, Mapping):
        candidates += [content[name] for name in _ENTRIES if name in content]
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate and all(_is_tensor(*item) for item in candidate.items()):
            wrapped = all(name.startswith("module.") for name in candidate)
            return {name.removeprefix("module."): t for name, t in candidate.items()} if wrapped else candidate
    raise UserError(f"{path} holds no state dict, neither by itself nor under {', '.join(_ENTRIES)}")


def _content(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Of a file from anywhere, any part of the reader may fail in any way.
        text = " ".join(str(error).split())
        found = re.search(r"GLOBAL ([\w.]+)", text)
        if found is None:
            raise UserError(f"{path} is not a file of tensors that torch.save wrote: {text[:120]}") from error
        raise UserError(
            f"{path} holds a pickled {found[1]} beside its tensors; such objects are not read, since that can run code "
            "from the file: save the network's state_dict() alone, where the file was made"
        ) from error


def _is_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _own_name(model: Model, name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name, count=1)
    return name if name.startswith("classifier.") else f"trunk.{model.trunk.tensor_name(name)}"


def _problem(tensor: Tensor, expected: Tensor) -> str:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return "not a plain tensor"
    if tensor.shape != expected.shape:
        return f"of shape {tuple(tensor.shape)} instead of {tuple(expected.shape)}"
    if tensor.is_floating_point() != expected.is_floating_point() or tensor.is_complex():
        return f"of {tensor.dtype} instead of {expected.dtype}"
    return ""


def _misfit(path: Path, model: Model, problem: str) -> UserError:
    return UserError(
        f"{path} does not hold the weights of a {model.arch} for {model.classes} classes and {model.channels} channels "
        f"of {model.image_size} pixels: {problem}"
    )
