"""Batches of normalised images, with augmented views made on the device in a few operations per batch."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from icckd.data.augmentation import NOTHING, Augmentation, Drawn, Parameters, augment, draw, parameters
from icckd.data.order import Balance, balanced_order, random_order
from icckd.data.streaming import ImageFiles

# First word of the seeds of augmentation, so that it shares no stream with orders.
_AUGMENTATION = 2
_PLAIN_BATCH = 500


class WholeBatch(NamedTuple):
    """What the host knows of a batch of which several ranks have a part each.

    Attributes:
        counts: Images of each rank; their parts follow one another.
        labels: Of all its images, int64 (B,).
        indices: Their places among all images, int64 (B,).
    """

    counts: tuple[int, ...]
    labels: np.ndarray
    indices: np.ndarray


class Batch(NamedTuple):
    """Some of the images, and what is known of them.

    Attributes:
        views: The same B images, augmented independently, each float32 (B, C, H, W); strong views come last.
        labels: int64 (B,).
        indices: Their places among all images, int64 (B,).
        whole: The batch that this is a rank's part of; None where it is all.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    indices: Tensor
    whole: WholeBatch | None = None


class Epochs(Protocol):
    """Batches, epoch by epoch: a pure function of (epoch, step). `len()` is the number of steps in an epoch."""

    batch_size: int

    def __len__(self) -> int: ...

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from step `first_step` on, both counted from 0."""


class Batches:
    """The batches of a data set, epoch by epoch; `len()` is the number of steps in an epoch.

    Order and augmentation are pure functions of (seed, epoch, step): a run resumed at any step sees the same bits, and
    there is no state to save. Devices agree on what is drawn, to the bit but for the rounding of interpolated pixels.
    A device other than a CPU gets order and augmentation of an epoch at its start, so that no step waits for either.
    Iterating goes through epoch 0.

    Args:
        images: uint8 (N, C, H, W), kept on `device`; or in files, of which batches are decoded ahead and sent. Or
            float32 of height 1: signals, kept on `device`.
        labels: int64 (N,), kept on `device`.
        batch_size: Images per step, of all ranks together.
        mean: Per-channel mean of the images scaled to [0, 1]. A view is (image / 255 − mean) / std.
            Of signals, which are not scaled, a view is (signal − mean) / std.
        std: Per-channel standard deviation, likewise, each above 0.
        augmentation: How views vary; None: not at all.
        views: Views per image and batch.
        shuffle: Draw a new order for every epoch, rather than that of `images`.
        seed: Seed of order and augmentation, 0 or more.
        device: Where images are kept and views are made.
        drop_last: Leave out an epoch's last, smaller batch.
        balance: Shuffle so that batches are balanced; their size is then the product of both numbers.
        part: (rank, ranks): which of so many contiguous parts of each batch this is. They are as even as can be, and
            empty where a batch has fewer images than ranks. `len()`, order and augmentation are the whole batch's.
        strong_views: How many of the views, the last ones, vary by `strong_augmentation`; fewer than all, and none of
            images in files.
        strong_augmentation: How those vary; given where there are any.
        crop_areas: float64 (C, 2), for the labels below C the bounds of the crop's area, as fractions of the image's,
            in place of augmentation.resized_crop, which then is not None; None: that, for all.

    Raises:
        TypeError, ValueError: An argument is not as said above.
    """

    def __init__(
        self,
        images: Tensor | ImageFiles,
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
        balance: Balance | None = None,
        part: tuple[int, int] = (0, 1),
        strong_views: int = 0,
        strong_augmentation: Augmentation | None = None,
        crop_areas: Tensor | None = None,
    ):
        _check_images(images, labels)
        _check_statistics(mean, std, channels=images.shape[1])
        if not isinstance(images, Tensor) and augmentation and augmentation.resized_crop and augmentation.crop_padding:
            raise ValueError(f"augmentation is {augmentation}; images in files are cropped in one way only")
        for name, value, least in (("batch_size", batch_size, 1), ("views", views, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}; it should be {least} or more")
        _check_balance(balance, batch_size, shuffle)
        _check_strong(strong_views, strong_augmentation, views, images)
        if not 0 <= part[0] < part[1]:
            raise ValueError(f"part is {part}; it should be (rank, ranks) with 0 <= rank < ranks")
        if crop_areas is not None:
            _check_crop_areas(crop_areas, labels, augmentation)
        self.images = images.to(device) if isinstance(images, Tensor) else images
        self.labels = labels.to(device)
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.views = views
        self.strong_views = strong_views
        self.strong_augmentation = strong_augmentation
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.balance = balance
        self.part = part
        self._crop_areas = None if crop_areas is None else crop_areas.cpu().numpy()
        self._on_host = labels.cpu().numpy()
        channel_mean, channel_std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
        largest = 255 if images.dtype == torch.uint8 else 1
        self._scale = (1 / (largest * channel_std)).float().to(device)
        self._shift = (-channel_mean / channel_std).float().to(device)

    def __len__(self) -> int:
        steps = len(self.images) / self.batch_size
        return math.floor(steps) if self.drop_last else math.ceil(steps)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from step `first_step` on, both counted from 0."""
        order, device = self._order(number), self.labels.device
        wanted = range(first_step, len(self))
        steps = (self._step(order, number, step) for step in wanted)
        decoded = None if isinstance(self.images, Tensor) else self._decoded(self.images, order, number, wanted)
        sent = steps if device.type == "cpu" else _sent(list(steps), device)
        for step, (chosen, how, strong) in zip(wanted, sent, strict=True):
            images = self._images(chosen) if decoded is None else next(decoded)
            views = self._views(images, len(chosen), how, strong)
            yield Batch(views, self.labels[chosen], chosen, self._whole(order, step))

    def _order(self, epoch: int) -> np.ndarray:
        if self.balance is not None:
            return balanced_order(self._on_host, self.balance, self.seed, epoch)
        if self.shuffle:
            return random_order(len(self.images), self.seed, epoch)
        return np.arange(len(self.images))

    def _whole(self, order: np.ndarray, step: int) -> WholeBatch | None:
        if self.part == (0, 1):
            return None
        batch = self._of_all(order, step)
        ends = [len(batch) * rank // self.part[1] for rank in range(self.part[1] + 1)]
        return WholeBatch(tuple(np.diff(ends).tolist()), self._on_host[batch], batch)

    def _of_all(self, order: np.ndarray, step: int) -> np.ndarray:
        """The places of the images that all ranks show in a step."""
        return order[step * self.batch_size : (step + 1) * self.batch_size]

    def _step(self, order: np.ndarray, epoch: int, step: int) -> "_Step":
        """Which images a step shows, and how, on the CPU; but for what is done as images are decoded."""
        places, drawn, strong = self._drawn(order, epoch, step)
        if self._boxes_are_cut:
            drawn = drawn._replace(place=None, boxes=None)
        size = self.images.shape[2:]
        return _Step(torch.from_numpy(places), parameters(drawn, *size), parameters(strong, *size))

    def _decoded(self, files: ImageFiles, order: np.ndarray, epoch: int, steps: Iterable[int]) -> Iterator[Tensor]:
        return files.decoded((self._drawn(order, epoch, step)[:2] for step in steps), self.labels.device)

    def _drawn(self, order: np.ndarray, epoch: int, step: int) -> tuple[np.ndarray, Drawn, Drawn]:
        """The places of the images that a step shows, and what is drawn for them: for weak views and strong ones."""
        batch = self._of_all(order, step)
        rank, ranks = self.part
        part = slice(len(batch) * rank // ranks, len(batch) * (rank + 1) // ranks)
        drawn, strong = NOTHING, NOTHING
        random = np.random.default_rng([_AUGMENTATION, self.seed, epoch, step])
        if self.augmentation is not None:
            areas = None if self._crop_areas is None else self._crop_areas[self._on_host[batch]]
            drawn = draw(random, self.augmentation, self._weak_views, len(batch), areas).part(part)
        if self.strong_augmentation is not None and self.strong_views:
            strong = draw(random, self.strong_augmentation, self.strong_views, len(batch)).part(part)
        return batch[part], drawn, strong

    @property
    def _weak_views(self) -> int:
        return self.views - self.strong_views

    def _views(self, images: Tensor, count: int, how: Parameters, strong: Parameters) -> tuple[Tensor, ...]:
        """The views of `count` images, or of what are their views already, but for what follows the boxes."""
        weak = self._varied(images, self.augmentation, self._weak_views, count, how)
        return (*weak, *self._varied(images, self.strong_augmentation, self.strong_views, count, strong))

    def _varied(
        self, images: Tensor, augmentation: Augmentation | None, views: int, count: int, how: Parameters
    ) -> tuple[Tensor, ...]:
        if not views:
            return ()
        if augmentation is None:
            return (self._normalize(images),) * views
        varied = self._normalize(augment(images, augmentation, 1 if self._boxes_are_cut else views, how))
        return varied.unflatten(0, (views, count)).unbind()

    @property
    def _boxes_are_cut(self) -> bool:
        boxes = self.augmentation is not None and self.augmentation.resized_crop is not None
        return boxes and not isinstance(self.images, Tensor)

    def _images(self, chosen: Tensor) -> Tensor:
        assert isinstance(self.images, Tensor)
        # NumPy copies an image whole, PyTorch by elements: four times slower.
        if self.images.device.type == "cpu":
            return torch.from_numpy(self.images.numpy()[chosen.numpy()])
        return self.images[chosen]

    def _normalize(self, images: Tensor) -> Tensor:
        return images.float().mul_(self._scale).add_(self._shift)


def plain_batches(
    images: Tensor | ImageFiles,
    labels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    part: tuple[int, int] = (0, 1),
) -> Batches:
    """All of the images in their order, as they are, for a network that is asked about them."""
    return Batches(
        images,
        labels,
        batch_size=_PLAIN_BATCH,
        mean=mean,
        std=std,
        augmentation=None,
        views=1,
        shuffle=False,
        seed=0,
        device=device,
        drop_last=False,
        part=part,
    )


class _Step(NamedTuple):
    """The places of the images that a step shows, int64 (B,), and how its weak and its strong views vary."""

    chosen: Tensor
    how: Parameters
    strong: Parameters


def _sent(steps: Sequence[_Step], device: torch.device) -> Iterator[_Step]:
    """`steps` on `device`, all sent at once: nothing is sent, or waited for, from one to the next."""
    sizes, kinds_of_how = [len(step.chosen) for step in steps], len(Parameters._fields)
    kinds = zip(*((chosen, *how, *strong) for chosen, how, strong in steps), strict=True)
    columns = [repeat(None) if kind[0] is None else _send(kind, device).split(sizes, dim=-1) for kind in kinds]
    for chosen, *how in zip(*columns, strict=False):
        yield _Step(chosen, Parameters(*how[:kinds_of_how]), Parameters(*how[kinds_of_how:]))


def _send(tensors: tuple[Tensor, ...], device: torch.device) -> Tensor:
    whole = torch.cat(tensors, dim=-1)
    return whole.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else whole.to(device)


def _check_images(images: Tensor | ImageFiles, labels: Tensor) -> None:
    signals = images.dtype == torch.float32 and images.ndim == 4 and images.shape[2] == 1
    if images.dtype != torch.uint8 and not signals:
        raise TypeError(f"images has dtype {images.dtype}; it should be torch.uint8, or torch.float32 of height 1")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels has dtype {labels.dtype}; it should be torch.int64")
    if images.ndim != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}; it should be (N, C, H, W)")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; it should be ({len(images)},), one per image")


def _check_crop_areas(areas: Tensor, labels: Tensor, augmentation: Augmentation | None) -> None:
    if augmentation is None or augmentation.resized_crop is None:
        raise ValueError(f"crop_areas is given, but augmentation is {augmentation}; it should have a resized_crop")
    if areas.dtype != torch.float64:
        raise TypeError(f"crop_areas has dtype {areas.dtype}; it should be torch.float64")
    if areas.ndim != 2 or areas.shape[1] != 2 or len(areas) <= labels.max():
        raise ValueError(
            f"crop_areas has shape {tuple(areas.shape)}; it should be (C, 2) with C above {int(labels.max())}, the "
            "largest label"
        )
    low, high = areas.unbind(1)
    if not ((low > 0) & (low <= high) & (high <= 1)).all():
        raise ValueError(f"crop_areas is {areas.tolist()}; each class should have 0 < low <= high <= 1")


def _check_balance(balance: Balance | None, batch_size: int, shuffle: bool) -> None:
    if balance is not None and (batch_size != balance.batch_size or not shuffle):
        raise ValueError(
            f"balance is {balance}, batch_size {batch_size} and shuffle {shuffle}; shuffled batches should hold "
            f"{balance.batch_size} images"
        )


def _check_strong(
    strong_views: int, strong_augmentation: Augmentation | None, views: int, images: Tensor | ImageFiles
) -> None:
    if not 0 <= strong_views < views:
        raise ValueError(f"strong_views is {strong_views}; it should be 0 or more, and less than views, {views}")
    if strong_views and strong_augmentation is None:
        raise ValueError(f"strong_augmentation is None; it should say how the strong views, {strong_views}, vary")
    if strong_views and not isinstance(images, Tensor):
        raise ValueError(f"strong_views is {strong_views}; it should be 0 for images in files")


def _check_statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise ValueError(f"{name} has {len(values)} values; it should have {channels}, one per channel")
    if min(std) <= 0:
        raise ValueError(f"std is {tuple(std)}; every value should be above 0")
