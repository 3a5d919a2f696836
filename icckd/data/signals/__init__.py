"""The data set `signals`: windows of sensor signals, each of a person at an activity, tested on people left out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from icckd.data.augmentation import Augmentation
from icckd.data.image_data import ImageData, People, Split, hold_out_people, noisy, part_of, wrong_labels
from icckd.data.signals.synthetic import synthetic_windows
from icckd.errors import UserError
from icckd.settings import DataSettings

_TEST_FRACTION = 0.25


def load_signals(root: Path | None, settings: DataSettings) -> ImageData:
    """The windows in the files of the folder `root`, or where that is None the built-in synthetic ones.

    The windows of the people in data.left_out are the test set: float32 (M, channels, 1, length). Activities are the
    classes. Raises UserError, naming file or setting, where files or settings are wrong, nobody is left to train on, or
    an activity is of nobody of those.
    """
    windows = synthetic_windows()
    whole = Split(
        torch.from_numpy(windows.signals).unsqueeze(2),
        torch.from_numpy(windows.activity),
        windows.source,
        torch.from_numpy(windows.person),
    )
    left_out = _left_out(windows.people, settings.left_out)
    train, test = hold_out_people(whole, left_out)
    if settings.validation > 0:
        rest = [person for person in range(len(windows.people)) if person not in left_out]
        train, test = hold_out_people(train, _last(rest, settings.validation, "data.validation"))
    if settings.train_fraction < 1:
        train = part_of(train, settings.train_fraction)
    assert isinstance(train.images, Tensor)
    assert train.people is not None
    assert test.people is not None
    mean, std = _statistics(train.images, settings)
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


def _left_out(names: Sequence[str], given: list[str] | None) -> list[int]:
    """The indices of the people who are the test set."""
    if given is None:
        return _last(range(len(names)), _TEST_FRACTION, "data.left_out")
    for name in given:
        if name not in names:
            raise UserError(f"data.left_out names {name!r}; it should name some of {', '.join(names)}")
    return [names.index(name) for name in given]


def _last(people: Sequence[int], fraction: float, setting: str) -> list[int]:
    """The last `fraction` of `people`, rounded, at least one."""
    return list(people)[-max(round(fraction * len(people)), 1) :]


def _statistics(signals: Tensor, settings: DataSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel; the latter is 1 for a channel that is as good as constant."""
    by_channel = signals.double().transpose(0, 1).flatten(1)
    deviation, mean = torch.std_mean(by_channel, dim=1, correction=0)
    deviation[deviation <= torch.finfo(torch.float32).eps * mean.abs()] = 1
    return tuple(settings.mean or mean.tolist()), tuple(settings.std or deviation.tolist())
