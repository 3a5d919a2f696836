"""Batches of normalised images, with augmented views made on the device in a few operations per batch."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

# First words of the seeds of the two kinds of random numbers, so that they never share a stream.
_ORDER, _AUGMENTATION = 1, 2


class Augmentation(NamedTuple):
    """How a training image is varied: zero-padded by `crop_padding` pixels a side, cropped back to its size at a
    random place, and mirrored left to right with probability 1/2 where `flip` is set."""

    crop_padding: int
    flip: bool


class Batch(NamedTuple):
    """Some of the images, and what is known of them.

    views: The same B images, augmented independently, each float32 (B, C, H, W).
    labels: int64 (B,).
    indices: Their places among all images, int64 (B,).
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    indices: Tensor


class Batches:
    """The batches of a data set, epoch by epoch; `len()` is the number of steps in an epoch.

    Order and augmentation are pure functions of (seed, epoch, step) and the same on every device: a run resumed at
    any step sees the same bits, and there is no state to save. Iterating goes through epoch 0.

    Args:
        images: uint8 (N, C, H, W), kept on `device`.
        labels: int64 (N,), kept on `device`.
        batch_size: Images per step.
        mean: Per-channel mean of the images scaled to [0, 1]. A view is (image / 255 − mean) / std.
        std: Per-channel standard deviation, likewise, each above 0.
        augmentation: How views vary; None: not at all.
        views: Views per image and batch.
        shuffle: Draw a new order for every epoch, rather than that of `images`.
        seed: Seed of order and augmentation, 0 or more.
        device: Where images are kept and views are made.
        drop_last: Leave out an epoch's last, smaller batch.

    Raises:
        TypeError, ValueError: An argument is not as said above.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None,
        views: int,
        shuffle: bool,
        seed: int,
        device: torch.device | str,
        drop_last: bool,
    ):
        _check_images(images, labels)
        _check_statistics(mean, std, channels=images.shape[1])
        for name, value, least in (("batch_size", batch_size, 1), ("views", views, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it should be {least} or more")
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.views = views
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        channel_mean, channel_std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
        self._scale = (1 / (255 * channel_std)).float().to(device)
        self._shift = (-channel_mean / channel_std).float().to(device)

    def __len__(self) -> int:
        steps = len(self.images) / self.batch_size
        return math.floor(steps) if self.drop_last else math.ceil(steps)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from step `first_step` on, both counted from 0."""
        order = self._order(number)
        for step in range(first_step, len(self)):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            images = self.images[chosen]
            random = np.random.default_rng([_AUGMENTATION, self.seed, number, step])
            views = tuple(self._normalize(self._augment(images, random)) for _ in range(self.views))
            yield Batch(views, self.labels[chosen], chosen)

    def _order(self, epoch: int) -> Tensor:
        count = len(self.images)
        if self.shuffle:
            order = torch.from_numpy(np.random.default_rng([_ORDER, self.seed, epoch]).permutation(count))
        else:
            order = torch.arange(count)
        return order.to(self.images.device)

    def _augment(self, images: Tensor, random: np.random.Generator) -> Tensor:
        if self.augmentation is None:
            return images
        padding, flip = self.augmentation
        top, left = random.integers(0, 2 * padding + 1, size=(2, len(images)))
        images = random_crop(images, padding, self._on_device(top), self._on_device(left))
        if flip:
            mirrored = self._on_device(random.random(len(images)) < 0.5)
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        return images

    def _on_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.images.device)

    def _normalize(self, images: Tensor) -> Tensor:
        return images.float().mul_(self._scale).add_(self._shift)


def random_crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Crops of (B, C, H, W) `images` zero-padded by `padding` pixels a side, each of the images' own size.

    `top` and `left`, int64 (B,) in [0, 2·padding], place image b's crop in its padded image.
    """
    height, width = images.shape[-2:]
    windows = pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    each = torch.arange(len(images), device=images.device)
    # Two indices with a slice between them: the indexed axis comes first, (B, C, H, W).
    return windows[each, :, top, left]


def _check_images(images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.uint8:
        raise TypeError(f"images has dtype {images.dtype}; it should be torch.uint8")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels has dtype {labels.dtype}; it should be torch.int64")
    if images.ndim != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}; it should be (N, C, H, W)")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; it should be ({len(images)},), one per image")


def _check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} has {len(values)} values; it should have {channels}, one per channel")
    if min(std) <= 0:
        raise ValueError(f"std is {tuple(std)}; every value should be above 0")
