"""What a teacher trained by disparity learning left of its test windows, checked."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from icckd.errors import UserError
from icckd.report.reading import check_labels, picked, read_tensors


@dataclass(frozen=True)
class Codes:
    """N test windows' class codes and disparity codes, float32 (N, F), classes and people, int64 (N,).

    People are those of the test windows, counted from 0.
    """

    class_codes: Tensor
    disparity_codes: Tensor
    labels: Tensor
    people: Tensor


def read_codes(path: Path, classes: int) -> Codes | None:
    """What the safetensors file at `path` holds of windows of so many classes; None where there is no such file.

    Raises UserError where it holds anything else.
    """
    tensors = read_tensors(path)
    if tensors is None:
        return None
    codes = Codes(*picked(tensors, Codes.__dataclass_fields__, path))
    windows = (codes.class_codes, codes.disparity_codes)
    count = codes.labels.numel()
    if any(x.dtype != torch.float32 or x.ndim != 2 or len(x) != count or not x.isfinite().all() for x in windows):
        raise UserError(f"{path}: both codes should be finite float32 of {count} rows, as many as labels")
    if any(x.numel() == 0 for x in windows):
        raise UserError(f"{path}: both codes should be of a window or more, and of a number or more each")
    if any(x.dtype != torch.int64 or x.shape != (count,) for x in (codes.labels, codes.people)):
        raise UserError(f"{path}: labels and people should be int64 of {count} rows")
    check_labels(path, "labels", codes.labels, classes)
    if (codes.people < 0).any():
        raise UserError(f"{path}: people should be counted from 0")
    return codes
