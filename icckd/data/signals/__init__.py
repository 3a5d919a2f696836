"""The data set `signals`: windows of sensor signals, each of a person at an activity, tested on people left out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from icckd.data.augmentation import Augmentation
from icckd.data.image_data import ImageData, People, Split, hold_out_people, noisy, part_of, wrong_labels
from icckd.data.signals.files import read_windows
from icckd.data.signals.synthetic import synthetic_windows
from icckd.data.signals.windows import Windows
from icckd.errors import UserError
from icckd.settings import DataSettings

_TEST_FRACTION = 0.25
_MOST_NAMED = 20
# Of a channel whose deviation is less, or less than rounding leaves of its mean, nothing but noise would be amplified.
_LEAST_DEVIATION = 1e-18


def load_signals(root: Path | None, settings: DataSettings) -> ImageData:
    """The windows in the files of the folder `root`, or where that is None the built-in synthetic ones.

    The windows of the people in data.left_out are the test set: float32 (M, channels, 1, length). Activities are the
    classes. Raises UserError, naming file or setting, where files or settings are wrong, nobody is left to train on, or
    an activity is of nobody of those.
    """
    windows = synthetic_windows() if root is None else read_windows(root)
    if len(windows.activities) < 2:
        raise UserError(f"{windows.source} holds windows of one activity only; there should be at least 2")
    train, test = _split(windows, settings)
    if settings.train_fraction < 1:
        train = part_of(train, settings.train_fraction)
    assert isinstance(train.images, Tensor)
    assert train.people is not None
    assert test.people is not None
    mean, std = _statistics(train.images, settings, windows.source)
    labels, candidates = noisy(train.labels, len(windows.activities), settings)
    as_it_is = Augmentation(crop_padding=0, flip=False)
    return ImageData(
        settings.shown_name,
        train.images,
        labels,
        *test[:2],
        windows.activities,
        mean,
        std,
        as_it_is,
        as_it_is,
        candidates,
        wrong_labels(labels, train.labels),
        people=People(train.people, test.people, windows.people),
    )


def _split(windows: Windows, settings: DataSettings) -> tuple[Split, Split]:
    """The windows to train and to test on. Raises UserError where nobody is left, or an activity is of nobody."""
    whole = Split(
        torch.from_numpy(windows.signals).unsqueeze(2),
        torch.from_numpy(windows.activity),
        windows.source,
        torch.from_numpy(windows.person),
    )
    left_out = _left_out(windows, settings.left_out)
    rest, test = hold_out_people(whole, left_out)
    if settings.validation > 0:
        others = [person for person in range(len(windows.people)) if person not in left_out]
        held_out = _last(others, settings.validation)
        if len(held_out) == len(others):
            raise UserError(
                f"data.validation is {settings.validation:g}, which leaves nobody to train on: it holds out "
                f"{len(held_out)} of the {len(others)} people beside those of data.left_out"
            )
        rest, test = hold_out_people(rest, held_out)
    unseen = np.setdiff1d(np.arange(len(windows.activities)), rest.labels.numpy())
    if len(unseen):
        who = _listed([windows.people[person] for person in np.unique(windows.person[windows.activity == unseen[0]])])
        raise UserError(
            f"data.left_out: the activity {windows.activities[unseen[0]]} is only of {who}, of whom nobody would be "
            "trained on; leave out others"
        )
    return rest, test


def _left_out(windows: Windows, given: list[str | int] | None) -> list[int]:
    """The indices of the people who are the test set."""
    people = windows.people
    if len(people) < 2:
        raise UserError(
            f"{windows.source} holds windows of one person only; there should be at least 2, as some are left out"
        )
    if given is None:
        return _last(range(len(people)), _TEST_FRACTION)
    names = [str(name) for name in given]
    for name in names:
        if name not in people:
            raise UserError(f"data.left_out names {name!r}, whom {windows.source} does not; it names {_listed(people)}")
    if len(names) == len(people):
        raise UserError(f"data.left_out names everybody in {windows.source}; somebody should be left to train on")
    return [people.index(name) for name in names]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _last(people: Sequence[int], fraction: float) -> list[int]:
    """The last `fraction` of `people`, rounded, at least one."""
    return list(people)[-max(round(fraction * len(people)), 1) :]


def _statistics(signals: Tensor, settings: DataSettings, source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel; the latter is 1 for a channel that is as good as constant."""
    for setting, values in (("mean", settings.mean), ("std", settings.std)):
        if values is not None and len(values) != signals.shape[1]:
            channels = signals.shape[1]
            raise UserError(f"data.{setting} has {len(values)} values; it should have {channels}, one per channel")
    deviation, mean = torch.std_mean(signals.double(), dim=(0, 2, 3), correction=0)
    constant = deviation <= (torch.finfo(torch.float32).eps * mean.abs()).clamp_min(_LEAST_DEVIATION)
    if constant.all() and settings.std is None:
        raise UserError(f"{source}: the signals to train on are the same everywhere; they should differ")
    deviation[constant] = 1
    return tuple(settings.mean or mean.tolist()), tuple(settings.std or deviation.tolist())
