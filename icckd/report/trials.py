"""What a summary tells of the trials of class augmentation, checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icckd.errors import UserError
from icckd.report.reading import mapping, number


@dataclass(frozen=True)
class TriedClass:
    """A class, its false positives and accuracy by area (None where unknown), and the area chosen for it, if any."""

    name: str
    false_positives: list[float | None]
    accuracy: list[float | None]
    chosen: float | None

    @property
    def gain(self) -> float:
        """How many false positives fewer than with the first area it has with the best."""
        known = [count for count in self.false_positives if count is not None]
        return (self.false_positives[0] or 0.0) - min(known, default=0.0)


@dataclass(frozen=True)
class ClassAugmentation:
    """The lower bounds of the crop's area that were tried, the strongest first, and all classes, in order of gain.

    Those with a milder crop come first. `holdout` is the fraction of the training images that was held out.
    """

    areas: list[float]
    holdout: float
    classes: list[TriedClass]

    @property
    def chosen(self) -> list[TriedClass]:
        return [each for each in self.classes if each.chosen is not None]


def read_class_augmentation(summary: dict[str, Any], path: Path, names: list[str]) -> ClassAugmentation | None:
    """What the summary in `path` tells of trials, of the classes with these names (none: not known); None: nothing.

    Raises UserError where that does not fit together.
    """
    if "class_augmentation" not in summary:
        return None
    found = mapping(summary["class_augmentation"], path, "class_augmentation")
    areas, holdout = _numbers(found.get("areas")), number(found.get("holdout"))
    tables = [_table(found.get(name), len(areas)) for name in ("false_positives", "accuracy")]
    if not areas or None in areas or holdout is None or len(tables[0]) != len(tables[1]):
        raise UserError(f"{path}: class_augmentation should have areas, holdout, false_positives and accuracy")
    names = names or [str(label) for label in range(len(tables[0]))]
    if len(names) != len(tables[0]):
        raise UserError(
            f"{path}: class_augmentation tells of {len(tables[0])} classes, of which there are {len(names)}"
        )
    chosen = mapping(found.get("chosen"), path, "class_augmentation.chosen")
    classes = [
        TriedClass(name, counts, accuracy, number(chosen.get(str(label))))
        for label, (name, counts, accuracy) in enumerate(zip(names, *tables, strict=True))
    ]
    classes.sort(key=lambda each: (each.chosen is None, -each.gain))
    return ClassAugmentation([area for area in areas if area is not None], holdout, classes)


def _numbers(values: Any) -> list[float | None]:
    return [number(value) for value in values] if isinstance(values, list) else []


def _table(rows: Any, columns: int) -> list[list[float | None]]:
    """The rows of so many numbers each; none where they are others."""
    found = [_numbers(row) for row in rows] if isinstance(rows, list) else []
    return found if all(len(row) == columns for row in found) else []
