"""What would fail late is tried early, on a few images, before anything is trained."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from icckd.data import Batch, ImageData, WholeBatch
from icckd.errors import BackendUnavailable, UserError
from icckd.models import Model
from icckd.training import Task
from icckd.training.tasks.frozen import can_be_attacked

_IMAGES = 4
# How PyTorch says that a tensor is larger than the memory, or than any could be.
_NO_MEMORY = re.compile("allocate memory|not enough memory|out of memory|size calculation overflowed", re.IGNORECASE)


def rehearse(
    stage: str, tasks: Callable[[], list[Task]], data: ImageData, device: torch.device, processes: int
) -> None:
    """Raise UserError where a loss of `stage`, of these tasks, cannot be computed: of a few black images."""
    known = data.train_labels if len(data.train_labels) else data.test_labels
    labels = known[:_IMAGES].to(device)
    images = torch.zeros(len(labels), *data.test_images.shape[1:], device=device)
    try:
        for task in tasks():
            losses = task.to(device)(_batch(images, labels, task.views, processes))
            losses["loss"].backward()
    except UserError:
        raise
    except BackendUnavailable as error:
        raise UserError(f"{stage}.loss.backend: {error}") from error
    except Exception as error:  # Of any kind: sizes that no memory holds, a method of somebody else's.
        raise UserError(f"{stage}.loss cannot be computed: {_reason(error)}") from error


def rehearse_attack(attack: str, stage: str, model: Model) -> None:
    """Raise UserError where the network of `stage`, which is to be attacked, gives no gradient to follow."""
    try:
        possible = can_be_attacked(model)
    except Exception as error:  # Of any kind: a network of somebody else's.
        raise UserError(f"evaluation.attack cannot be computed: {_reason(error)}") from error
    if not possible:
        raise UserError(
            f"evaluation.attack is {attack}, but {model.arch}, the {stage}, has no gradient with respect to its "
            "images; leave evaluation.attack out, or give another network"
        )


def _batch(images: Tensor, labels: Tensor, views: int, processes: int) -> Batch:
    """A batch of which every process has these few images."""
    indices = torch.arange(len(labels))
    counts, of_all = (len(labels),) * processes, labels.cpu().repeat(processes)
    whole = WholeBatch(counts, of_all.numpy(), indices.repeat(processes).numpy())
    return Batch((images,) * views, labels, indices.to(images.device), whole if processes > 1 else None)


def _reason(error: Exception) -> str:
    if _NO_MEMORY.search(str(error)):
        return "it needs more memory than there is; a size among its method's settings, or its memory's, is too large"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} (--debug shows where)"
