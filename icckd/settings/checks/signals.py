"""Rules of what has no meaning for windows of signals, which are no pixels."""

from collections.abc import Sequence
from dataclasses import asdict

from icckd.methods.intra_class import IntraClass
from icckd.settings.checks.rule import SettingRule
from icckd.settings.definition import Settings, StrongAugmentationSettings


def signal_rules(settings: Settings, stages: Sequence[str]) -> list[SettingRule]:
    """What has no meaning for signals, of which an image's pixels are not made."""
    data, attack = settings.data, settings.evaluation.attack
    rules: list[SettingRule] = [
        ("data.image_size", data.image_size, data.image_size is None, "null for signals, which are not resized"),
        ("data.labels", data.labels, data.labels == "fine", "fine for signals, whose activities are of no coarse ones"),
        ("evaluation.attack", attack, attack is None, "null for signals: an attack changes pixels in [0, 1]"),
    ]
    for name, value in asdict(data.augmentation).items():
        rules.append((f"data.augmentation.{name}", value, not value, "left out for signals, which are not augmented"))
    usual = asdict(StrongAugmentationSettings())
    for name, value in asdict(data.strong_augmentation).items():
        wanted = "left out for signals, which are not augmented"
        rules.append((f"data.strong_augmentation.{name}", value, value == usual[name], wanted))
    if "teacher" in stages:
        loss, method = settings.teacher.loss, settings.teacher.loss.method_class()
        strong = loss.strong_views() > 0
        if method is IntraClass:
            wanted = "false for signals, which are not augmented"
            rules.append(("teacher.loss.strong_second_view", strong, not strong, wanted))
        else:
            wanted = "one without strong views for signals, which are not augmented"
            rules.append(("teacher.loss.method", method.name, not strong, wanted))
    if "student" in stages and (procedure := settings.student.loss.procedure()) is not None:
        wanted = "one that takes signals, which are no pixels in [0, 1]"
        rules.append(("student.loss.method", procedure.name, not procedure.of_pixels, wanted))
    return rules
