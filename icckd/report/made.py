"""What a run's folder holds of images that were made for its student."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from icckd.errors import UserError
from icckd.report.reading import check_labels, check_tensor, picked, read_tensors

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
    images, labels, confidences = picked(tensors, _NAMES, path)
    if images.dtype != torch.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise UserError(
            f"{path}: images is {images.dtype} {tuple(images.shape)}; it should be torch.uint8 (K, C, H, W)"
        )
    check_tensor(path, "image_labels", labels, torch.int64, images.shape[:1])
    check_tensor(path, "image_confidences", confidences, torch.float32, images.shape[:1])
    check_labels(path, "image_labels", labels, classes)
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise UserError(f"{path}: image_confidences should lie in [0, 1]")
    return MadeImages(images, labels, confidences, made)
