"""What a run's folder holds of images that were made for its student."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from icckd.errors import UserError
from icckd.report.reading import read_tensors

_NAMES = ("images", "image_labels", "image_confidences")


@dataclass(frozen=True)
class MadeImages:
    """K images that were made for the student, the latest few of each class, and how many there were in all.

    images: uint8 (K, C, H, W).
    labels: What the teacher takes each for, int64 (K,).
    confidences: The teacher's probability of that, float32 (K,).
    made: None where the summary does not tell.
    """

    images: Tensor
    labels: Tensor
    confidences: Tensor
    made: float | None


def read_made_images(path: Path, made: float | None, classes: int) -> MadeImages | None:
    """Those among the tensors in `path`, which a student's training left; None where there are none.

    Raises UserError where they are not as said above.
    """
    tensors = read_tensors(path)
    if tensors is None or _NAMES[0] not in tensors:
        return None
    problem = _problem(tensors, classes)
    if problem:
        raise UserError(f"{path}: {problem}")
    images, labels, confidences = (tensors[name] for name in _NAMES)
    return MadeImages(images, labels, confidences, made)


def _problem(tensors: dict[str, Tensor], classes: int) -> str | None:
    missing = [name for name in _NAMES if name not in tensors]
    if missing:
        return f"it lacks {', '.join(missing)}"
    images, labels, confidences = (tensors[name] for name in _NAMES)
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        return f"images is {images.dtype} {tuple(images.shape)}; it should be torch.uint8 (K, C, H, W)"
    for name, tensor, dtype in zip(_NAMES[1:], (labels, confidences), (torch.int64, torch.float32), strict=True):
        if tensor.dtype != dtype or tensor.shape != images.shape[:1]:
            return f"{name} is {tensor.dtype} {tuple(tensor.shape)}; it should be {dtype} ({len(images)},)"
    if ((labels < 0) | (labels >= classes)).any():
        return f"image_labels should lie in [0, {classes})"
    if not ((confidences >= 0) & (confidences <= 1)).all():
        return "image_confidences should lie in [0, 1]"
    return None
