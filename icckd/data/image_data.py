"""A data set, checked, and the splits made of it: by class, or by person."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from icckd.data.augmentation import Augmentation
from icckd.data.label_noise import with_noise
from icckd.data.streaming import ImageFiles
from icckd.errors import UserError
from icckd.settings import AugmentationSettings, DataSettings, label_noise_of

# Of which mean and deviation are found where images are not in memory.
_SAMPLE = 4096


class CoarseClasses(NamedTuple):
    """Classes that are made of finer ones.

    names: The coarse classes' names, in label order.
    of: The coarse class of each fine one, int64 (F,); −1 for one that no image is of.
    """

    names: tuple[str, ...]
    of: Tensor


class FineLabels(NamedTuple):
    """The true fine labels of images whose labels are coarse.

    Attributes:
        train: int64 (N,), in [0, F).
        test: int64 (M,), likewise.
        coarse_of: The coarse class of each fine one, int64 (F,); −1 for one that no image is of.
    """

    train: Tensor
    test: Tensor
    coarse_of: Tensor


class People(NamedTuple):
    """Whose the windows of signals are: of nobody both in training and in the test.

    Attributes:
        train: int64 (N,), in [0, len(names)).
        test: int64 (M,), likewise.
        names: The people's names, of those too who with data.validation are in neither.
    """

    train: Tensor
    test: Tensor
    names: tuple[str, ...]

    def by_split(self) -> dict[str, list[str]]:
        """The names of those whose windows are trained on ("train"), and of those left out ("test")."""
        return {
            split: [self.names[person] for person in people.unique().tolist()]
            for split, people in (("train", self.train), ("test", self.test))
        }


@dataclass(frozen=True)
class ImageData:
    """Square images of one size, or windows of signals of one length, and their classes.

    Signals take the place of images: float32 (N, channels, 1, length), as they are, without augmentation.

    Args:
        name: The data set's name.
        train_images: uint8 (N, C, H, H), in memory or in files; or signals; none where they were not to be looked at.
        train_labels: int64 (N,), in [0, len(classes)): what training sees, with data.label_noise not the true ones.
        test_images: uint8 (M, C, H, H), likewise.
        test_labels: int64 (M,), in [0, len(classes)).
        classes: The classes' names, in label order.
        mean: What is subtracted from each channel of images scaled to [0, 1], or of signals as they are.
        std: What each channel is then divided by, above 0.
        augmentation: How training images are varied.
        strong_augmentation: How strong views of them are, for what learns from such.
        candidates: With data.label_noise partial, the candidate labels of training images, bool (N, len(classes)), of
            which train_labels are one each.
        wrong_labels: The fraction of train_labels that data.label_noise made wrong.
        fine_labels: With data.labels coarse, the true fine labels of all images; labels and classes are then the coarse
            ones.
        people: Whose the signals are; None for images.
    """

    name: str
    train_images: Tensor | ImageFiles
    train_labels: Tensor
    test_images: Tensor | ImageFiles
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: Augmentation
    strong_augmentation: Augmentation
    candidates: Tensor | None = None
    wrong_labels: float = 0.0
    fine_labels: FineLabels | None = None
    people: People | None = None


class Split(NamedTuple):
    """Labelled images, uint8 (N, C, H, W) and int64 (N,), and the file or folder that errors name.

    Signals, float32, are also of people, int64 (N,).
    """

    images: Tensor | ImageFiles
    labels: Tensor
    source: str
    people: Tensor | None = None


def image_data(
    name: str,
    train: Split | None,
    test: Split,
    classes: Sequence[str],
    augmentation: Augmentation,
    settings: DataSettings,
    coarse: CoarseClasses | None = None,
) -> ImageData:
    """The data set of two splits, as `settings` want it; None: of no training images, as `load_data` says.

    With data.validation above 0 that fraction of `train` takes the place of `test`; data.train_fraction is a part of
    what is left. Labels and `classes` then become those of `coarse`, if given, and data.label_noise changes labels of
    training images. Mean and standard deviation are those of the images that are then trained on, or of 4096 of them at
    most where they are in files, and `augmentation` is the data set's own, where `settings` say nothing else. Raises
    UserError where images and labels do not fit together, a fraction leaves a side empty, a setting does not fit the
    images, or all training images, as far as they are looked at, are of one and the same colour.
    """
    looked_at = train is not None
    train = _none_of(test) if train is None else train
    for split in (train, test) if looked_at else (test,):
        _check_split(split, len(classes))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise UserError(
            f"{test.source} holds {_size(test.images)} images; "
            f"they should be {_size(train.images)}, as in {train.source}"
        )
    shown = train if looked_at else test
    if len((shown.labels if coarse is None else coarse.of[shown.labels]).unique()) < 2:
        raise UserError(f"{shown.source} holds images of one class only; there should be at least 2 classes")
    if settings.validation > 0:
        train, test = hold_out(train, settings.validation)
    if settings.train_fraction < 1:
        train = part_of(train, settings.train_fraction)
    mean, std = _statistics(name, train, settings)
    fine = None
    if coarse is not None:
        fine, classes = FineLabels(train.labels, test.labels, coarse.of), coarse.names
        train, test = (split._replace(labels=coarse.of[split.labels]) for split in (train, test))
    labels, candidates = noisy(train.labels, len(classes), settings)
    size = train.images.shape[-1]
    return ImageData(
        name,
        train.images,
        labels,
        *test[:2],
        tuple(classes),
        mean,
        std,
        _augmentation(augmentation, settings.augmentation, size, "data.augmentation"),
        _augmentation(augmentation, settings.strong_augmentation, size, "data.strong_augmentation"),
        candidates,
        wrong_labels(labels, train.labels),
        fine,
    )


def noisy(labels: Tensor, classes: int, settings: DataSettings) -> tuple[Tensor, Tensor | None]:
    """The labels to train on, and the candidate labels, if data.label_noise is of these: see `with_noise`."""
    if settings.label_noise is None or not len(labels):
        return labels, None
    return with_noise(labels, classes, label_noise_of(settings.label_noise))


def wrong_labels(given: Tensor, true: Tensor) -> float:
    """The fraction of labels that are not the true ones; 0 of none."""
    return 0.0 if not len(given) else (given != true).double().mean().item()


def _statistics(name: str, train: Split, settings: DataSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The given mean and deviation, or else those of the images, which are only decoded for that if they are needed."""
    channels = train.images.shape[1]
    for setting, values in (("mean", settings.mean), ("std", settings.std)):
        if values is not None and len(values) != channels:
            raise UserError(
                f"data.{setting} has {len(values)} values; it should have {channels}, one per channel of the images"
            )
    if len(train.images) == 0:
        return tuple(settings.mean or [0.0] * channels), tuple(settings.std or [1.0] * channels)
    if isinstance(train.images, Tensor):
        counts = channel_counts(train.images)
    elif settings.mean is None or settings.std is None:
        counts = sum((channel_counts(part) for part in train.images.sample(_SAMPLE, name)), torch.tensor(0))
    else:
        return tuple(settings.mean), tuple(settings.std)
    _check_variety(train, counts)
    mean, std = channel_statistics(counts)
    return tuple(settings.mean or mean), tuple(settings.std or std)


def _augmentation(own: Augmentation, settings: AugmentationSettings, size: int, name: str) -> Augmentation:
    """The augmentation in force for images of `size` pixels a side; `own` is what the data set has by itself.

    `name` is that of `settings`.
    """
    resized_crop = None if settings.resized_crop is None else (settings.resized_crop[0], settings.resized_crop[1])
    padding = settings.crop_padding
    if padding is None:
        padding = own.crop_padding if resized_crop is None else 0
    if padding >= size:
        raise UserError(f"{name}.crop_padding is {padding}; the images' side is {size}: give less")
    flip = own.flip if settings.flip is None else settings.flip
    return Augmentation(padding, flip, settings.rotation, resized_crop)


def without_training_images(data: ImageData) -> ImageData:
    """`data` as `load_data` gives it without training images, but for mean and deviation, which are known."""
    none = _none_of(Split(data.test_images, data.test_labels, data.name))
    return replace(
        data,
        train_images=none.images,
        train_labels=none.labels,
        candidates=None,
        wrong_labels=0.0,
        fine_labels=None if data.fine_labels is None else data.fine_labels._replace(train=none.labels),
    )


def train_part(data: ImageData, held_out: float, setting: str) -> ImageData:
    """`data` without its test images and fine labels: `held_out` of the training images take the test images' place.

    They are drawn class by class, by what training sees for their classes, the same way every time. Raises UserError,
    naming the setting that wants it, where a class has one image only.
    """
    train = Split(data.train_images, data.train_labels, data.name)
    held = _held_out(train, held_out, setting)
    rest, test = select(train, ~held), select(train, held)
    return replace(
        data,
        train_images=rest.images,
        train_labels=rest.labels,
        test_images=test.images,
        test_labels=test.labels,
        candidates=None if data.candidates is None else data.candidates[torch.from_numpy(~held)],
        fine_labels=None,
    )


def hold_out_people(split: Split, people: Sequence[int]) -> tuple[Split, Split]:
    """`split` in two: the windows of others, and those of `people`. Both keep their order."""
    assert split.people is not None
    held_out = np.isin(split.people.numpy(), people)
    return select(split, ~held_out), select(split, held_out)


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """`split` in two: the rest, and `fraction` of each class, drawn the same way every time.

    Both keep the images' order, and at least one image of every class. Raises UserError where a class has only one.
    """
    held_out = _held_out(split, fraction, "data.validation")
    return select(split, ~held_out), select(split, held_out)


def _held_out(split: Split, fraction: float, setting: str) -> np.ndarray:
    """Which images are held out: bool (N,). Raises UserError, naming the setting, where a class has only one."""
    random = np.random.default_rng(0)
    labels = split.labels.numpy()
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise UserError(
                f"{split.source} has one image of class {label}; {setting} needs at least 2 images of each class"
            )
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held_out[random.choice(members, count, replace=False)] = True
    return held_out


def part_of(split: Split, fraction: float) -> Split:
    """`fraction` of each class, at least one image, drawn the same way every time; the images' order is kept.

    A smaller fraction is a part of a larger one.
    """
    random = np.random.default_rng(1)
    labels = split.labels.numpy()
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        chosen[members[: max(round(fraction * len(members)), 1)]] = True
    return select(split, chosen)


def _none_of(split: Split) -> Split:
    return select(split, np.zeros(len(split.labels), dtype=bool))


def select(split: Split, mask: np.ndarray) -> Split:
    places = np.flatnonzero(mask)
    chosen = torch.from_numpy(places)
    images = split.images[chosen] if isinstance(split.images, Tensor) else split.images.part(places)
    people = None if split.people is None else split.people[chosen]
    return Split(images, split.labels[chosen], split.source, people)


def channel_counts(images: Tensor) -> Tensor:
    """How often each value occurs in each channel of uint8 (N, C, H, W) images: int64 (C, 256)."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def channel_statistics(counts: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images scaled to [0, 1], exactly, from their `channel_counts`.

    A deviation below 1/255, a channel that is as good as constant, counts as 1/255, so that one can divide by it.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in counts.double():
        frequency = channel / channel.sum()
        mean = (frequency * values).sum()
        means.append(mean.item())
        deviations.append(max((frequency * (values - mean) ** 2).sum().sqrt().item(), 1 / 255))
    return tuple(means), tuple(deviations)


def _check_split(split: Split, classes: int) -> None:
    images, labels, source, _ = split
    if len(images) == 0:
        raise UserError(f"{source} holds no images; it should hold at least one of each class")
    if len(images) != len(labels):
        raise UserError(f"{source} holds {len(images)} images but {len(labels)} labels; there should be one per image")
    if images.shape[2] != images.shape[3]:
        raise UserError(f"{source} holds {_size(images)} images; they should be square")
    if labels.min() < 0 or labels.max() >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)][0].item()
        raise UserError(f"{source} has the label {wrong}; labels should be from 0 to {classes - 1}")


def _check_variety(split: Split, counts: Tensor) -> None:
    if (counts > 0).sum() == len(counts):
        values = ", ".join(map(str, counts.argmax(dim=1).tolist()))
        raise UserError(
            f"{split.source} holds {len(split.images)} training images with the value {values} in every pixel; they "
            "should differ"
        )


def _size(images: Tensor | ImageFiles) -> str:
    return "×".join(str(n) for n in images.shape[1:])
