"""All rules of a run, and the error of the first that does not hold."""

import os
from collections.abc import Sequence
from dataclasses import asdict

from icckd.errors import UserError
from icckd.settings.checks.data import class_augmentation_rules, data_rules
from icckd.settings.checks.networks import (
    evaluation_rules,
    federated_rules,
    strong_views_rule,
    student_rules,
    teacher_rules,
)
from icckd.settings.checks.rule import SettingRule
from icckd.settings.checks.signals import signal_rules
from icckd.settings.definition import STAGES, Settings
from icckd.settings.label_noise import label_noise_of
from icckd.settings.names import flat


def check(settings: Settings, stages: Sequence[str] = STAGES) -> None:
    """Raise UserError, naming the setting, where a value is of the right type but out of range.

    `stages` are those that will be trained: the settings of others are not looked at. Every text must be one that
    config.yaml and the file system can hold, and every whole number one of 64 bits, which reports read.
    """
    for name, value in flat(asdict(settings)).items():
        if isinstance(value, str):
            check_text(name, value)
        elif isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{name} is {value}; it should be in (-2^63, 2^63)")
    if settings.data.label_noise is not None:
        label_noise_of(settings.data.label_noise)
    rules: list[SettingRule] = [
        *data_rules(settings.data),
        *evaluation_rules(settings.evaluation),
        ("checkpoint_every", settings.checkpoint_every, settings.checkpoint_every >= 0, "0 or more"),
        ("seed", settings.seed, 0 <= settings.seed < 2**63, "in [0, 2^63)"),
    ]
    if settings.data.name == "signals":
        rules += signal_rules(settings, stages)
    if stages:
        rules += class_augmentation_rules(settings, stages)
    if "teacher" in stages:
        rules += teacher_rules(settings.teacher)
        rules.append(strong_views_rule(settings))
    if "student" in stages:
        rules += student_rules(settings.student)
        rules += federated_rules(settings.federated)
    for name, given, holds, wanted in rules:
        if not holds:
            shown = "null" if given is None else str(given).lower() if isinstance(given, bool) else given
            raise UserError(f"{name} is {shown}; it should be {wanted}")


def check_text(name: str, value: str) -> None:
    """Raise UserError, naming the setting, where `value` cannot be a file's name or be written to a file in UTF-8."""
    try:
        value.encode("utf-8")
        os.fsencode(value)
    except UnicodeEncodeError as error:
        raise UserError(f"{name} is {value!r}, which is not UTF-8 (or the locale is not); give one that is") from error
    if "\0" in value:
        raise UserError(f"{name} is {value!r}; it should hold no zero byte")
