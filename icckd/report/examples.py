"""Test images, or windows of signals, that a run's folder holds with what the teacher says about them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from icckd.errors import UserError
from icckd.report.reading import check_labels, check_tensor, picked, read_tensors


@dataclass(frozen=True)
class Examples:
    """K test images, with the teacher's logits (K, classes), labels (K,) and places (K,).

    Images are uint8 (K, C, H, W), signals float32 (K, C, 1, length).
    """

    images: Tensor
    logits: Tensor
    labels: Tensor
    indices: Tensor


def read_examples(path: Path, classes: int) -> Examples | None:
    """Those in the safetensors file at `path`, of so many classes; None where there is no such file.

    Raises UserError where they are not as said above.
    """
    tensors = read_tensors(path)
    if tensors is None:
        return None
    examples = Examples(*picked(tensors, Examples.__dataclass_fields__, path))
    images, count = examples.images, examples.labels.numel()
    dtype = torch.float32 if images.is_floating_point() else torch.uint8
    check_tensor(path, "images", images, dtype, (count, *images.shape[1:4]))
    check_tensor(path, "logits", examples.logits, torch.float32, (count, classes))
    check_tensor(path, "labels", examples.labels, torch.int64, (count,))
    check_tensor(path, "indices", examples.indices, torch.int64, (count,))
    if images.ndim != 4 or 0 in images.shape[1:] or (images.is_floating_point() and images.shape[2] != 1):
        raise UserError(
            f"{path}: images has shape {tuple(images.shape)}; it should be (K, C, H, W), of signals (K, C, 1, L)"
        )
    for name, tensor in (("images", images), ("logits", examples.logits)):
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} should be finite")
    check_labels(path, "labels", examples.labels, classes)
    return examples
