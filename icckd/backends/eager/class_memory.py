"""Pushing rows into a class memory in plain PyTorch: any device, any float dtype, no synchronisation."""

import torch
from torch import Tensor


def class_memory_push(slots: Tensor, pushed: Tensor, features: Tensor, labels: Tensor) -> None:
    """Write the rows into the rings of their classes, and count them; see `icckd.ops.class_memory`."""
    num_classes = len(pushed)
    capacity = (len(slots) - 1) // num_classes
    features = features.to(slots.dtype)
    labels, order = torch.where(features.isfinite().all(1), labels, -1).sort(stable=True)
    valid = (labels >= 0) & (labels < num_classes)
    classes = torch.where(valid, labels, 0)
    first = torch.searchsorted(labels, labels)
    end = torch.searchsorted(labels, labels, right=True)
    place = torch.arange(len(labels), device=labels.device)
    kept = valid & (end - place <= capacity)
    slot = classes * capacity + (pushed[classes] + place - first) % capacity
    # What is not kept meets in the last slot.
    slot = torch.where(kept, slot, len(slots) - 1)
    slots.index_copy_(0, slot, features[order])
    slots[-1].zero_()
    pushed.index_add_(0, classes, valid.long())
