"""Presets: defaults under everything else that is given, for the data set and the networks that are given."""

from collections.abc import Mapping
from typing import Any

import torch

from icckd.errors import UserError
from icckd.settings.definition import STAGES

# What presets depend on.
DECISIVE = (
    *("device", "data.name", "data.classes_per_batch", "data.samples_per_class"),
    *("teacher.arch", "teacher.epochs", "teacher.batch_size"),
    *("student.arch", "student.epochs", "student.batch_size", "student.loss.method"),
)

# The field's protocol (CRD's code, HobbitLong/RepDistiller, and those that follow it; for ImageNet torchvision's):
# what is the same for every data set …
_PAPER = {
    "schedule": "step",
    "decay": 0.1,
    "warmup_epochs": 0.0,
    "optimizer": "sgd",
    "rate_scaling": "none",
    "momentum": 0.9,
    "nesterov": False,
    "decay_all": True,
    "drop_last": False,
    "autocast": False,
    "channels_last": False,
    "compile": False,
}
# … for each of them …
_CIFAR = {"epochs": 240, "milestones": [0.625, 0.75, 0.875], "batch_size": 64, "weight_decay": 5e-4}
_PAPER_TRAINING: dict[str, dict[str, Any]] = {
    "cifar10": {**_CIFAR, "learning_rate": 0.05},
    "cifar100": {**_CIFAR, "learning_rate": 0.05},
    "tiny-imagenet": {
        "epochs": 200,
        "milestones": [0.3, 0.6, 0.8],
        "batch_size": 256,
        "weight_decay": 5e-4,
        "learning_rate": 0.2,
    },
    "image-folder": {
        "epochs": 100,
        "milestones": [0.3, 0.6, 0.9],
        "batch_size": 512,
        "weight_decay": 1e-4,
        "learning_rate": 0.2,
    },
}
# … and where images of 32 pixels meet the networks made for telephones.
_GENTLE_NETWORKS, _GENTLE_RATE = ("mobilenet", "shufflenet"), 0.01
_CROP = {"augmentation.crop_padding": 4, "augmentation.rotation": 0.0, "augmentation.resized_crop": None}
_PAPER_IMAGES: dict[str, dict[str, Any]] = {
    "cifar10": _CROP,
    "cifar100": {**_CROP, "mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]},
    "tiny-imagenet": {
        "augmentation.crop_padding": 0,
        "augmentation.rotation": 20.0,
        "augmentation.resized_crop": None,
        "mean": [0.4802, 0.4481, 0.3975],
        "std": [0.2302, 0.2265, 0.2262],
    },
    "image-folder": {
        "augmentation.crop_padding": 0,
        "augmentation.rotation": 0.0,
        "augmentation.resized_crop": [0.08, 1.0],
        "image_size": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}
# ImageNet's weights and temperatures, where the method in force is this one alone.
_PAPER_IMAGENET_LOSSES = {
    "kd": {"cross_entropy_weight": 0.5, "kd.weight": 0.5, "kd.temperature": 1.0},
    "dist": {"dist.temperature": 1.0},
}
# Large batches. What is this project's own choice, for all of them …
_FAST = {"schedule": "cosine", "drop_last": True, "channels_last": True}
# … up to 8192 images: learning rate .1 per 256 after a warm-up of 5 epochs, with which ResNet-50 keeps the accuracy of
# batches of 256 (Goyal et al. 2017, arXiv 1706.02677, who lose a point at 16,384) …
_LARGEST_FOR_SGD = 8192
_FAST_SGD = {
    "batch_size": 1024,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "rate_scaling": "linear",
    "nesterov": True,
    "warmup_epochs": 5.0,
}
# … and above: LAMB at a rate of 4 / (100 √2) for 16,384 images after a warm-up of 10 epochs, by the square root for
# other sizes (You et al. 2020, arXiv 1904.00962, for ResNet-50). Weight decay 1.5 is that of the first author's code
# (github.com/fastalgo/imagenet_resnet50_lamb) and of its reproduction in PyTorch, which comes to 76.9 % at 16,384 in 90
# epochs (github.com/NUS-HPC-AI-Lab/pytorch-lamb); with both the rate falls linearly, not along a cosine. LARS does as
# well on ResNet-50 but, by that paper, not on networks with attention, of which timm has many.
_FAST_LAMB = {
    "optimizer": "lamb",
    "learning_rate": 0.005 / 2**0.5,
    "rate_scaling": "square-root",
    "weight_decay": 1.5,
    "warmup_epochs": 10.0,
}


def preset_defaults(name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults, by dotted name, of the preset `name`, where the settings in DECISIVE are as `chosen`.

    Raises UserError where it has none for the data set. An unknown preset has none: whoever reads the settings says so.
    """
    makers = {"paper": _paper, "fast": _fast}
    return makers[name](chosen) if name in makers else {}


def _paper(chosen: Mapping[str, Any]) -> dict[str, Any]:
    data = chosen["data.name"]
    if data not in _PAPER_TRAINING:
        raise UserError(
            f"preset is paper, but the field has no protocol for {data}; it is for {', '.join(_PAPER_TRAINING)}"
        )
    defaults = {f"data.{name}": value for name, value in {**_PAPER_IMAGES[data], "augmentation.flip": True}.items()}
    for stage in STAGES:
        training = {**_PAPER, **_PAPER_TRAINING[data]}
        if data.startswith("cifar") and str(chosen[f"{stage}.arch"]).startswith(_GENTLE_NETWORKS):
            training["learning_rate"] = _GENTLE_RATE
        defaults |= {f"{stage}.{name}": value for name, value in training.items()}
    if data == "image-folder":
        losses = _PAPER_IMAGENET_LOSSES.get(chosen["student.loss.method"], {})
        defaults |= {f"student.loss.{name}": value for name, value in losses.items()}
    return defaults


def _fast(chosen: Mapping[str, Any]) -> dict[str, Any]:
    on_gpu = chosen["device"] == "cuda" or (chosen["device"] == "auto" and torch.cuda.is_available())
    defaults: dict[str, Any] = {}
    for stage in STAGES:
        rule = _FAST_SGD if _images_a_step(chosen, stage) <= _LARGEST_FOR_SGD else _FAST_LAMB
        warmup = min(rule["warmup_epochs"], chosen[f"{stage}.epochs"])
        training = {**_FAST, **rule, "warmup_epochs": warmup, "autocast": on_gpu, "compile": on_gpu}
        defaults |= {f"{stage}.{name}": value for name, value in training.items()}
    return defaults


def _images_a_step(chosen: Mapping[str, Any], stage: str) -> int:
    classes, samples = chosen["data.classes_per_batch"], chosen["data.samples_per_class"]
    both = isinstance(classes, int) and isinstance(samples, int)
    return classes * samples if both else chosen[f"{stage}.batch_size"]
