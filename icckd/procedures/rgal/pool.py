"""The images that a student learns from, and their order."""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor

from icckd.data import Batch, Batches


class Pool:
    """The latest images that were made, `capacity` at most, oldest first, and the class of each.

    images: uint8 (N, C, H, W).
    labels: int64 (N,).
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], device: torch.device):
        self.capacity = capacity
        self.images = torch.empty(0, *shape, dtype=torch.uint8, device=device)
        self.labels = torch.empty(0, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, images: Tensor, labels: Tensor) -> None:
        """Take in `images` with their `labels`; the oldest make room."""
        # Copied, as what is saved is all of a tensor's memory.
        self.images = torch.cat([self.images, images])[-self.capacity :].clone()
        self.labels = torch.cat([self.labels, labels])[-self.capacity :].clone()

    def state(self) -> dict[str, Tensor]:
        return {"images": self.images, "labels": self.labels}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Be what `state()` gave. Raises ValueError where that is of images of another kind."""
        images, labels = state["images"], state["labels"]
        if images.shape[1:] != self.images.shape[1:] or images.dtype != torch.uint8 or len(images) != len(labels):
            raise ValueError(f"a pool of {tuple(images.shape)} images and {len(labels)} labels")
        self.images, self.labels = images.to(self.images.device), labels.to(self.labels.device)


class PoolBatches:
    """Batches of a pool that is refilled before each epoch; `len()` is the number of steps in an epoch.

    An epoch goes through the pool as often as its steps take, each time in another order. `refill(epoch)` is called
    where an epoch begins and not where one goes on, when the pool is what it was; `batches()` are those of the pool as
    it is: one pass through it.
    """

    def __init__(self, steps: int, batch_size: int, refill: Callable[[int], None], batches: Callable[[], Batches]):
        self.batch_size = batch_size
        self._steps = steps
        self._refill = refill
        self._batches = batches

    def __len__(self) -> int:
        return self._steps

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from step `first_step` on, both counted from 0."""
        if first_step == 0:
            self._refill(number)
        batches, step = self._batches(), first_step
        while step < self._steps:
            through, within = divmod(step, len(batches))
            # No two passes have the same number: an epoch has no more passes than steps.
            for batch in islice(batches.epoch(number * self._steps + through, within), self._steps - step):
                step += 1
                yield batch
