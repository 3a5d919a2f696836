"""Class-conditional augmentation: which classes get a milder crop, found by trials with crops of several strengths.

Strong crops cost some classes accuracy, and the remedy is at their rivals, which take their images (Kirichenko et al.
2023, arXiv 2401.01764): the classes whose false positives grow with the crop's strength get a milder one. `search` says
which; what a trial is, and that each is a run of its own, is said here, and how it is trained by its caller.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icckd.data import ImageData
from icckd.data.image_data import train_part
from icckd.errors import UserError
from icckd.settings import ClassAugmentationSettings, EvaluationSettings, Settings

Results = dict[str, Any]


class Trial(NamedTuple):
    """A teacher to train with `area` as the lower bound of the crop's area, by `settings` on `data`.

    The test images of `data` are held out of the run's training images.
    """

    area: float
    settings: Settings
    data: ImageData

    @property
    def name(self) -> str:
        """What progress calls it."""
        return _name(self.area)


def trial_epochs(settings: Settings) -> dict[str, int]:
    """The epochs of each of a run's trials by its name, in order; none where no class is to have a milder crop."""
    tried, crop = settings.data.class_augmentation, settings.data.augmentation.resized_crop
    if tried.classes == 0 or crop is None:
        return {}
    return {_name(area): tried.epochs or settings.teacher.epochs for area in tried.tried(crop)}


def _name(area: float) -> str:
    return f"crop {area}"


def trials(settings: Settings, data: ImageData) -> Iterator[Trial]:
    """The trials of a run, of the strongest crop first.

    Each by the settings of the run's teacher, but for the epochs and the bound; told to be measured on validation
    images. Raises UserError where a class is too small to be held out of.
    """
    tried, crop, teacher = settings.data.class_augmentation, settings.data.augmentation.resized_crop, settings.teacher
    assert crop is not None
    part = train_part(data, tried.holdout, "data.class_augmentation.holdout")
    for area in tried.tried(crop):
        bounds = (area, crop[1])
        augmentation = replace(settings.data.augmentation, resized_crop=list(bounds))
        off, validation = ClassAugmentationSettings(), tried.holdout
        yield Trial(
            area,
            replace(
                settings,
                data=replace(settings.data, augmentation=augmentation, class_augmentation=off, validation=validation),
                teacher=replace(teacher, epochs=tried.epochs or teacher.epochs),
                evaluation=EvaluationSettings(),
            ),
            replace(part, augmentation=part.augmentation._replace(resized_crop=bounds)),
        )


def search(settings: Settings, data: ImageData, train: Callable[[Trial], Mapping[str, Any]]) -> Results:
    """What the summary tells: which classes have a milder crop, and the numbers by which they were chosen.

    `train` gives the measures of a trial's teacher on the held-out images. Of "false_positives" and "accuracy" there is
    a list for each class, in class order, with a value for each of "areas"; "chosen" is the lower bound by label.
    """
    tried = settings.data.class_augmentation
    found = [(trial.area, train(trial)) for trial in trials(settings, data)]
    areas = [area for area, _ in found]
    false_positives, accuracy = (
        [list(by_area) for by_area in zip(*(measures[name] for _, measures in found), strict=True)]
        for name in ("per_class_false_positives", "per_class_accuracy")
    )
    chosen = choose(areas, false_positives, tried.classes)
    return {
        "areas": areas,
        "false_positives": false_positives,
        "accuracy": accuracy,
        "chosen": {str(label): area for label, area in chosen.items()},
        "holdout": tried.holdout,
    }


def choose(areas: Sequence[float], false_positives: Sequence[Sequence[int]], most: int) -> dict[int, float]:
    """The area by label of `most` classes at most, those that gain most from another one than the first, by label.

    A class with false positives F(a) at the area a gains F(areas[0]) − min F, if that is above 0, and has the area of
    that minimum. `areas` rise: of those with as few false positives the nearest to the first counts, and of classes
    that gain as much the one with the lower label (both this project's choice).
    """
    fewest = [min(range(len(areas)), key=counts.__getitem__) for counts in false_positives]
    gains = {label: counts[0] - counts[fewest[label]] for label, counts in enumerate(false_positives)}
    first = sorted((label for label, gain in gains.items() if gain > 0), key=lambda label: (-gains[label], label))
    return {label: areas[fewest[label]] for label in sorted(first[:most])}


def crop_areas(found: Mapping[str, Any], data: ImageData) -> Tensor:
    """The bounds of the crop's area by class, float64 (C, 2), by what `search` found for `data`.

    Raises UserError where a summary that was read tells of something else.
    """
    assert data.augmentation.resized_crop is not None
    areas = torch.tensor(data.augmentation.resized_crop, dtype=torch.float64).repeat(len(data.classes), 1)
    try:
        for label, area in found["chosen"].items():
            areas[int(label), 0] = area
    except (KeyError, AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(
            f"summary.json: class_augmentation should have chosen areas by label, but has {found}"[:300]
        ) from error
    return areas
