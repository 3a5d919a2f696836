"""Whether the settings' values are right."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from icckd.errors import UserError
from icckd.methods import MethodSettings, TeacherMethod, not_negative
from icckd.methods.intra_class import IntraClass
from icckd.settings.definition import (
    STAGES,
    AugmentationSettings,
    DataSettings,
    EvaluationSettings,
    FederatedSettings,
    Settings,
    StrongAugmentationSettings,
    StudentSettings,
    TeacherSettings,
    TrainingSettings,
)
from icckd.settings.label_noise import label_noise_of
from icckd.settings.losses import setting_name
from icckd.settings.names import flat

# The largest float32: PyTorch's optimisers take no larger factor.
_LARGEST_FACTOR = (2 - 2**-23) * 2.0**127
# The largest learning rate that stays one beside rate_scaling: fewer than 2⁶³ images multiply it by 2⁵⁵ at most.
_LARGEST_SCALED_RATE = _LARGEST_FACTOR * 2.0**-55
# Beyond it float32 does not hold the square of a signal.
_LARGEST_SIGNAL = 1e18
# A setting's name and value, whether it is right, and what would be.
_Rule = tuple[str, Any, bool, str]


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
    rules: list[_Rule] = [
        *_data_rules(settings.data),
        *_evaluation_rules(settings.evaluation),
        ("checkpoint_every", settings.checkpoint_every, settings.checkpoint_every >= 0, "0 or more"),
        ("seed", settings.seed, 0 <= settings.seed < 2**63, "in [0, 2^63)"),
    ]
    if settings.data.name == "signals":
        rules += _signal_rules(settings, stages)
    if stages:
        rules += _class_augmentation_rules(settings, stages)
    if "teacher" in stages:
        rules += _teacher_rules(settings.teacher)
        rules.append(_strong_views_rule(settings))
    if "student" in stages:
        rules += _student_rules(settings.student)
        rules += _federated_rules(settings.federated)
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


def _data_rules(data: DataSettings) -> list[_Rule]:
    size, left_out = data.image_size, data.left_out
    return [
        ("data.image_size", size, size is None or 8 <= size <= 1024, "null or in [8, 1024]"),
        ("data.validation", data.validation, 0 <= data.validation < 1, "in [0, 1)"),
        ("data.train_fraction", data.train_fraction, 0 < data.train_fraction <= 1, "in (0, 1]"),
        (
            "data.left_out",
            left_out,
            left_out is None or data.name == "signals",
            f"null for {data.name}: only signals are of people",
        ),
        (
            "data.left_out",
            left_out,
            left_out is None or 0 < len(left_out) == len(set(map(str, left_out))),
            "null, or one name or more, each once",
        ),
        *_statistics_rules(data),
        *_augmentation_rules("data.augmentation", data.augmentation),
        *_augmentation_rules("data.strong_augmentation", data.strong_augmentation),
        *_sampler_rules(data),
        *_streaming_rules(data),
    ]


def _statistics_rules(data: DataSettings) -> list[_Rule]:
    mean, std = data.mean or [], data.std or []
    rules: list[_Rule] = [
        ("data.mean", data.mean, (data.mean is None) == (data.std is None), "given where data.std is, or both null"),
    ]
    if data.name == "signals":
        return [
            *rules,
            ("data.mean", mean, all(abs(x) <= _LARGEST_SIGNAL for x in mean), "finite, one per channel"),
            (
                "data.std",
                std,
                all(1 / _LARGEST_SIGNAL <= x <= _LARGEST_SIGNAL for x in std),
                "above 0, one per channel",
            ),
        ]
    return [
        *rules,
        ("data.mean", mean, all(0 <= x <= 1 for x in mean), "in [0, 1], one per channel: pixels are scaled to that"),
        ("data.std", std, all(0.001 <= x <= 1 for x in std), "in [0.001, 1], one per channel, of pixels in [0, 1]"),
    ]


def _signal_rules(settings: Settings, stages: Sequence[str]) -> list[_Rule]:
    """What has no meaning for signals, of which an image's pixels are not made."""
    data, attack = settings.data, settings.evaluation.attack
    rules: list[_Rule] = [
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
        method = settings.teacher.loss.method_class()
        wanted = "one without strong views for signals, which are not augmented"
        rules.append(("teacher.loss.method", method.name, not method.strong_views, wanted))
    if "student" in stages and (procedure := settings.student.loss.procedure()) is not None:
        wanted = "one that takes signals, which are no pixels in [0, 1]"
        rules.append(("student.loss.method", procedure.name, not procedure.of_pixels, wanted))
    return rules


def _augmentation_rules(prefix: str, augmentation: AugmentationSettings) -> list[_Rule]:
    padding, bounds = augmentation.crop_padding, augmentation.resized_crop
    rules: list[_Rule] = [
        (f"{prefix}.rotation", augmentation.rotation, 0 <= augmentation.rotation <= 180, "in [0, 180] degrees"),
    ]
    if padding is not None:
        rules.append((f"{prefix}.crop_padding", padding, padding >= 0, "null, or 0 or more"))
    if bounds is not None:
        areas = len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= 1
        rules += [
            (f"{prefix}.resized_crop", bounds, areas, "null, or two fractions [low, high] with 0 < low <= high <= 1"),
            (f"{prefix}.crop_padding", padding, not padding, f"null or 0 beside {prefix}.resized_crop"),
        ]
    return rules


def _class_augmentation_rules(settings: Settings, stages: Sequence[str]) -> list[_Rule]:
    prefix, tried = "data.class_augmentation", settings.data.class_augmentation
    epochs, areas = tried.epochs, tried.areas
    rules: list[_Rule] = [
        (f"{prefix}.classes", tried.classes, tried.classes >= 0, "0 or more"),
        (f"{prefix}.areas", areas, all(0 < area <= 1 for area in areas), "fractions in (0, 1]"),
        (f"{prefix}.holdout", tried.holdout, 0 < tried.holdout < 1, "between 0 and 1"),
        (f"{prefix}.epochs", epochs, epochs is None or epochs >= 1, "null, or 1 or more"),
    ]
    if tried.classes == 0:
        return rules
    crop, warmup = settings.data.augmentation.resized_crop, settings.teacher.warmup_epochs
    milder = crop is not None and len(crop) == 2 and len(tried.tried(crop)) > 1
    beside = f"where {prefix}.classes is above 0"
    return [
        *rules,
        ("data.augmentation.resized_crop", crop, crop is not None, f"two fractions, the strongest crop, {beside}"),
        (f"{prefix}.areas", areas, milder, f"fractions of which one lies above the lower bound of {crop}"),
        (f"{prefix}.epochs", epochs, epochs is None or epochs >= warmup, f"teacher.warmup_epochs, {warmup}, or more"),
        ("teacher.weights", settings.teacher.weights, "teacher" in stages, f"null {beside}: teachers are trained"),
    ]


def _sampler_rules(data: DataSettings) -> list[_Rule]:
    classes, samples = data.classes_per_batch, data.samples_per_class
    balanced = data.sampler == "class-balanced"
    return [
        ("data.classes_per_batch", classes, classes is None or balanced, "null beside data.sampler random"),
        ("data.classes_per_batch", classes, classes is None or classes >= 2, "null, or 2 or more"),
        ("data.samples_per_class", samples, samples is None or balanced, "null beside data.sampler random"),
        ("data.samples_per_class", samples, samples is None or samples >= 1, "null, or 1 or more"),
    ]


def _streaming_rules(data: DataSettings) -> list[_Rule]:
    streaming, workers = data.streaming, data.workers
    possible = data.name == "image-folder" or not streaming
    return [
        ("data.streaming", streaming, possible, f"false for {data.name}: only an image-folder is streamed"),
        ("data.workers", workers, workers is None or streaming, "null without data.streaming"),
        ("data.workers", workers, workers is None or 0 <= workers <= 1024, "null, or in [0, 1024]"),
    ]


def _evaluation_rules(evaluation: EvaluationSettings) -> list[_Rule]:
    epsilon, steps, step_size = evaluation.epsilon, evaluation.steps, evaluation.step_size
    return [
        ("evaluation.epsilon", epsilon, 0 < epsilon <= 1, "in (0, 1]: pixels are"),
        ("evaluation.steps", steps, steps >= 1, "1 or more"),
        ("evaluation.step_size", step_size, 0 < step_size <= 1, "in (0, 1]"),
    ]


def _teacher_rules(teacher: TeacherSettings) -> list[_Rule]:
    method, loss, memory = teacher.loss.method_class(), teacher.loss.method_settings(), teacher.memory
    prefix = "teacher.loss" if method is IntraClass else f"teacher.loss.{setting_name(method.name)}"
    return [
        *_training_rules("teacher", teacher),
        ("teacher.memory.capacity", memory.capacity, memory.capacity >= 0, "0 or more"),
        ("teacher.memory.warmup_epochs", memory.warmup_epochs, memory.warmup_epochs >= 0, "0 or more"),
        ("teacher.memory.average", memory.average, 0 <= memory.average < 1, "in [0, 1)"),
        *_positive_rules(teacher, method),
        *_method_rules(prefix, loss),
    ]


def _strong_views_rule(settings: Settings) -> _Rule:
    method, streaming = settings.teacher.loss.method_class(), settings.data.streaming
    wanted = f"false with teacher.loss.method {method.name}, whose strong views are not made of images in files"
    return "data.streaming", streaming, not (streaming and method.strong_views), wanted


def _positive_rules(teacher: TeacherSettings, method: type[TeacherMethod]) -> list[_Rule]:
    positive, views = teacher.positive, teacher.loss.cross_entropy_views
    if positive == "second-view":
        return []
    wanted = f"second-view with teacher.loss.method {method.name}, which learns from its second view"
    rules: list[_Rule] = [("teacher.positive", positive, method.takes_positives, wanted)]
    if method is IntraClass:
        wanted = f"first where teacher.positive is {positive}: there is no second view with a gradient"
        rules.append(("teacher.loss.cross_entropy_views", views, views == "first", wanted))
    return rules


def _student_rules(student: StudentSettings) -> list[_Rule]:
    rules = _training_rules("student", student)
    weight = student.loss.cross_entropy_weight
    if weight is not None:
        rules.append(("student.loss.cross_entropy_weight", weight, *not_negative(weight)))
    if student.loss.procedure() is not None:
        beside = f"beside student.loss.method {student.loss.method}, which replaces the whole training"
        rules += [
            ("student.loss.cross_entropy_weight", weight, weight is None, f"null {beside}"),
            ("student.cuda_graph", student.cuda_graph, not student.cuda_graph, f"false {beside}"),
        ]
    for name, loss in student.loss.settings_in_force().items():
        rules += _method_rules(f"student.loss.{setting_name(name)}", loss)
    return rules


def _federated_rules(federated: FederatedSettings) -> list[_Rule]:
    return [
        ("federated.clients", federated.clients, federated.clients >= 1, "1 or more"),
        ("federated.rounds", federated.rounds, federated.rounds >= 1, "1 or more"),
        ("federated.local_epochs", federated.local_epochs, federated.local_epochs >= 1, "1 or more"),
        ("federated.skew", federated.skew, 0.01 <= federated.skew <= 1e6, "in [0.01, 1e6]"),
    ]


def _method_rules(prefix: str, settings: MethodSettings) -> list[_Rule]:
    return [(f"{prefix}.{name}", getattr(settings, name), *rule) for name, rule in settings.rules().items()]


def _training_rules(name: str, stage: TrainingSettings) -> list[_Rule]:
    largest_rate = _LARGEST_FACTOR if stage.rate_scaling == "none" else _LARGEST_SCALED_RATE
    rules: list[_Rule] = [
        (f"{name}.epochs", stage.epochs, stage.epochs >= 1, "1 or more"),
        (f"{name}.batch_size", stage.batch_size, stage.batch_size >= 2, "2 or more"),
        (f"{name}.accumulate", stage.accumulate, stage.accumulate >= 1, "1 or more"),
        (f"{name}.cuda_graph", stage.cuda_graph, not stage.cuda_graph or stage.optimizer == "sgd",
         f"false beside {name}.optimizer {stage.optimizer}, whose learning rate a graph would not change"),
        (f"{name}.accumulate", stage.accumulate, stage.accumulate == 1 or not stage.cuda_graph,
         f"1 beside {name}.cuda_graph: a graph does not draw the same random numbers twice"),
        (f"{name}.optimizer", stage.optimizer, stage.optimizer == "sgd" or not stage.shard_parameters,
         f"sgd beside {name}.shard_parameters: a process does not know the norms of whole tensors"),
        (f"{name}.learning_rate", stage.learning_rate, 0 < stage.learning_rate <= largest_rate,
         f"above 0, and {largest_rate:.3g} at most with {name}.rate_scaling {stage.rate_scaling}"),
        (f"{name}.momentum", stage.momentum, 0 < stage.momentum < 1, "between 0 and 1"),
        (f"{name}.weight_decay", stage.weight_decay, 0 <= stage.weight_decay <= _LARGEST_FACTOR,
         f"in [0, {_LARGEST_FACTOR:.3g}]"),
        (f"{name}.warmup_epochs", stage.warmup_epochs, 0 <= stage.warmup_epochs <= stage.epochs,
         "between 0 and the number of epochs"),
        (f"{name}.decay", stage.decay, 0 < stage.decay <= 1, "in (0, 1]"),
    ]  # fmt: skip
    rules += [(f"{name}.milestones", m, 0 < m < 1, "fractions between 0 and 1") for m in stage.milestones]
    return rules
