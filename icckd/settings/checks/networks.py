"""Rules of both networks: how they are trained, by which losses, and how they are measured."""

from icckd.methods import LARGEST_FACTOR, MethodSettings, TeacherMethod, not_negative
from icckd.methods.intra_class import IntraClass
from icckd.settings.checks.rule import SettingRule
from icckd.settings.definition import (
    EvaluationSettings,
    FederatedSettings,
    Settings,
    StudentSettings,
    TeacherSettings,
    TrainingSettings,
)
from icckd.settings.losses import setting_name

# The largest learning rate that stays one beside rate_scaling: fewer than 2⁶³ images multiply it by 2⁵⁵ at most.
_LARGEST_SCALED_RATE = LARGEST_FACTOR * 2.0**-55


def teacher_rules(teacher: TeacherSettings) -> list[SettingRule]:
    method, loss, memory = teacher.loss.method_class(), teacher.loss.method_settings(), teacher.memory
    prefix = "teacher.loss" if method is IntraClass else f"teacher.loss.{setting_name(method.name)}"
    return [
        *_training_rules("teacher", teacher),
        ("teacher.memory.capacity", memory.capacity, memory.capacity >= 0, "0 or more"),
        ("teacher.memory.warmup_epochs", memory.warmup_epochs, memory.warmup_epochs >= 0, "0 or more"),
        ("teacher.memory.average", memory.average, 0 <= memory.average < 1, "in [0, 1)"),
        *_positive_rules(teacher, method),
        *(_intra_class_rules(teacher) if method is IntraClass else []),
        *_method_rules(prefix, loss),
    ]


def strong_views_rule(settings: Settings) -> SettingRule:
    method, streaming = settings.teacher.loss.method_class(), settings.data.streaming
    of = "strong_second_view" if method is IntraClass else f"method {method.name}"
    wanted = f"false with teacher.loss.{of}, whose strong views are not made of images in files"
    return "data.streaming", streaming, not (streaming and settings.teacher.loss.strong_views()), wanted


def _positive_rules(teacher: TeacherSettings, method: type[TeacherMethod]) -> list[SettingRule]:
    positive = teacher.positive
    if positive == "second-view":
        return []
    wanted = f"second-view with teacher.loss.method {method.name}, which learns from its second view"
    earlier = positive != "previous-epoch" or teacher.epochs > 1
    return [
        ("teacher.positive", positive, method.takes_positives, wanted),
        ("teacher.positive", positive, earlier, "another where teacher.epochs is 1: there is no epoch before"),
    ]


def _intra_class_rules(teacher: TeacherSettings) -> list[SettingRule]:
    """What the intra-class loss's settings have to do with the positives and the memory."""
    loss, capacity, positive = teacher.loss, teacher.memory.capacity, teacher.positive
    remembers = f"features where teacher.memory.capacity is {capacity}: the memory holds features"
    rules: list[SettingRule] = [
        ("teacher.loss.space", loss.space, loss.space == "features" or capacity == 0, remembers)
    ]
    if positive == "second-view":
        return rules
    nothing = f"where teacher.positive is {positive}: there is no second view"
    for name, usual in {"cross_entropy_views": "first", "space": "features", "neighbours": 0}.items():
        value = getattr(loss, name)
        rules.append((f"teacher.loss.{name}", value, value == usual, f"{usual} {nothing} with a gradient"))
    unseen = loss.strong_second_view and positive == "previous-epoch"
    rules.append(("teacher.loss.strong_second_view", loss.strong_second_view, not unseen, f"false {nothing}"))
    return rules


def student_rules(student: StudentSettings) -> list[SettingRule]:
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


def federated_rules(federated: FederatedSettings) -> list[SettingRule]:
    return [
        ("federated.clients", federated.clients, federated.clients >= 1, "1 or more"),
        ("federated.rounds", federated.rounds, federated.rounds >= 1, "1 or more"),
        ("federated.local_epochs", federated.local_epochs, federated.local_epochs >= 1, "1 or more"),
        ("federated.skew", federated.skew, 0.01 <= federated.skew <= 1e6, "in [0.01, 1e6]"),
    ]


def evaluation_rules(evaluation: EvaluationSettings) -> list[SettingRule]:
    epsilon, steps, step_size = evaluation.epsilon, evaluation.steps, evaluation.step_size
    return [
        ("evaluation.every", evaluation.every, evaluation.every >= 1, "1 or more"),
        ("evaluation.epsilon", epsilon, 0 < epsilon <= 1, "in (0, 1]: pixels are"),
        ("evaluation.steps", steps, steps >= 1, "1 or more"),
        ("evaluation.step_size", step_size, 0 < step_size <= 1, "in (0, 1]"),
        ("evaluation.training_images", evaluation.training_images, evaluation.training_images >= 0, "0 or more"),
    ]


def _method_rules(prefix: str, settings: MethodSettings) -> list[SettingRule]:
    return [(f"{prefix}.{name}", getattr(settings, name), *rule) for name, rule in settings.rules().items()]


def _training_rules(name: str, stage: TrainingSettings) -> list[SettingRule]:
    largest_rate = LARGEST_FACTOR if stage.rate_scaling == "none" else _LARGEST_SCALED_RATE
    rules: list[SettingRule] = [
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
        (f"{name}.weight_decay", stage.weight_decay, 0 <= stage.weight_decay <= LARGEST_FACTOR,
         f"in [0, {LARGEST_FACTOR:.3g}]"),
        (f"{name}.warmup_epochs", stage.warmup_epochs, 0 <= stage.warmup_epochs <= stage.epochs,
         "between 0 and the number of epochs"),
        (f"{name}.decay", stage.decay, 0 < stage.decay <= 1, "in (0, 1]"),
    ]  # fmt: skip
    rules += [(f"{name}.milestones", m, 0 < m < 1, "fractions between 0 and 1") for m in stage.milestones]
    return rules
