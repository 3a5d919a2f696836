"""Every setting of a run, with its default and meaning: the one place where both are written.

The command line (`icckd.cli`) turns these classes into `--help`, YAML files and dotted overrides.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from icckd.errors import UserError

STAGES = ("teacher", "student")
# The largest float32: PyTorch's optimisers take no larger factor.
_LARGEST_FACTOR = (2 - 2**-23) * 2.0**127
# A setting's name and value, whether it is right, and what would be.
_Rule = tuple[str, float, bool, str]


@dataclass
class DataSettings:
    """The images to train and test on.

    Args:
        name: The data set. Only digits is built in; the others are read from root.
        root: Folder that holds the data set's files (not needed for digits). Nothing is ever downloaded.
        image_size: Resize images to this many pixels a side (image-folder and tiny-imagenet only; null: as they are).
        validation: Hold out this fraction of the training images, class by class, and report on them instead of
            the test images: choose settings with it, then set it back to 0.
    """

    name: Literal["digits", "fashion-mnist", "cifar10", "cifar100", "tiny-imagenet", "image-folder"] = "digits"
    root: str | None = None
    image_size: int | None = None
    validation: float = 0.0


@dataclass
class TrainingSettings:
    """What teacher and student training share.

    Args:
        arch: The network's name; `icckd doctor` lists them all.
        epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: Peak learning rate of SGD with Nesterov momentum.
        momentum: SGD's momentum.
        weight_decay: L2 penalty on the weights (not on biases or normalisation parameters).
        schedule: How the learning rate falls: cosine to zero, or step by step.
        warmup_epochs: Epochs over which the learning rate first rises linearly from zero.
        milestones: Step schedule only: fractions of the training after which the rate falls.
        decay: Step schedule only: what the rate is multiplied by at each milestone.
        autocast: Run the network in bfloat16 where that is safe.
    """

    arch: str = "convnet-large"
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "step"] = "cosine"
    warmup_epochs: float = 1.0
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])
    decay: float = 0.1
    autocast: bool = False


@dataclass
class TeacherLossSettings:
    """The teacher's loss: cross-entropy + weight · intra-class contrastive loss.

    Args:
        weight: Weight λ of the intra-class loss; 0 trains a plain cross-entropy teacher.
        margin: Threshold δ: only samples whose classification margin exceeds it are anchors.
        margin_space: Measure the margin on softmax probabilities or on logits.
        temperature: Temperature τ of the intra-class loss.
        label_smoothing: Cross-entropy's label smoothing.
        backend: Who computes the losses: auto, reference, cpu, cuda or triton.
    """

    weight: float = 0.02
    margin: float = 0.2
    margin_space: Literal["probability", "logit"] = "probability"
    temperature: float = 0.1
    label_smoothing: float = 0.0
    backend: Literal["auto", "reference", "cpu", "cuda", "triton"] = "auto"


@dataclass
class TeacherSettings(TrainingSettings):
    """The teacher and how it is trained.

    Args:
        loss: The teacher's loss.
        memory: Cached embeddings per class that serve as further negatives (0: none).
        weights: Use this trained teacher (a run's teacher/ folder or its model.safetensors) instead of training one.
    """

    loss: TeacherLossSettings = field(default_factory=TeacherLossSettings)
    memory: int = 0
    weights: str | None = None


@dataclass
class DistillationSettings:
    """The student's loss: cross_entropy_weight · cross-entropy + weight · distillation loss.

    Args:
        method: Distillation method. kd: KL divergence of softened predictions (Hinton et al. 2015).
        weight: Weight of the distillation loss.
        cross_entropy_weight: Weight of the cross-entropy with the true labels.
        temperature: Temperature that softens both networks' predictions.
        standardize: Standardise each row of logits first (Sun et al. 2024).
        backend: Who computes the losses: auto, reference, cpu, cuda or triton.
    """

    method: Literal["kd"] = "kd"
    weight: float = 0.9
    cross_entropy_weight: float = 0.1
    temperature: float = 4.0
    standardize: bool = False
    backend: Literal["auto", "reference", "cpu", "cuda", "triton"] = "auto"


@dataclass
class StudentSettings(TrainingSettings):
    """The student and how it is distilled.

    Args:
        loss: The student's loss.
    """

    arch: str = "convnet-small"
    loss: DistillationSettings = field(default_factory=DistillationSettings)


@dataclass
class Settings:
    """All settings of a run.

    Args:
        data: The images to train and test on.
        teacher: The teacher and how it is trained.
        student: The student and how it is distilled.
        seed: Seed of everything random: the same seed on the same machine gives the same bits.
        device: Where to compute; auto takes a GPU where there is one.
        checkpoint_every: Save a checkpoint every so many steps, besides the one after each epoch (0: epochs only).
    """

    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = 200


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
    rules: list[_Rule] = [
        ("data.validation", settings.data.validation, 0 <= settings.data.validation < 1, "in [0, 1)"),
        ("checkpoint_every", settings.checkpoint_every, settings.checkpoint_every >= 0, "0 or more"),
        ("seed", settings.seed, 0 <= settings.seed < 2**63, "in [0, 2^63)"),
    ]
    if settings.data.image_size is not None:
        size = settings.data.image_size
        rules.append(("data.image_size", size, 8 <= size <= 1024, "in [8, 1024]"))
    if "teacher" in stages:
        rules += _teacher_rules(settings.teacher)
    if "student" in stages:
        rules += _student_rules(settings.student)
    for name, number, holds, wanted in rules:
        if not holds:
            raise UserError(f"{name} is {number}; it should be {wanted}")


def check_text(name: str, value: str) -> None:
    """Raise UserError, naming the setting, where `value` cannot be a file's name or be written to a file in UTF-8."""
    try:
        value.encode("utf-8")
        os.fsencode(value)
    except UnicodeEncodeError as error:
        raise UserError(f"{name} is {value!r}, which is not UTF-8 (or the locale is not); give one that is") from error
    if "\0" in value:
        raise UserError(f"{name} is {value!r}; it should hold no zero byte")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _teacher_rules(teacher: TeacherSettings) -> list[_Rule]:
    loss = teacher.loss
    return [
        *_training_rules("teacher", teacher),
        ("teacher.memory", teacher.memory, teacher.memory >= 0, "0 or more"),
        ("teacher.loss.weight", loss.weight, 0 <= loss.weight < float("inf"), "a finite number, 0 or more"),
        ("teacher.loss.margin", loss.margin, loss.margin == loss.margin, "a number"),
        ("teacher.loss.temperature", loss.temperature, 0 < loss.temperature < float("inf"), "above 0"),
        ("teacher.loss.label_smoothing", loss.label_smoothing, 0 <= loss.label_smoothing <= 1, "in [0, 1]"),
    ]


def _student_rules(student: StudentSettings) -> list[_Rule]:
    kd = student.loss
    return [
        *_training_rules("student", student),
        ("student.loss.weight", kd.weight, 0 <= kd.weight < float("inf"), "a finite number, 0 or more"),
        ("student.loss.cross_entropy_weight", kd.cross_entropy_weight,
         0 <= kd.cross_entropy_weight < float("inf"), "a finite number, 0 or more"),
        ("student.loss.temperature", kd.temperature, 0 < kd.temperature < float("inf"), "above 0"),
    ]  # fmt: skip


def _training_rules(name: str, stage: TrainingSettings) -> list[_Rule]:
    rules: list[_Rule] = [
        (f"{name}.epochs", stage.epochs, stage.epochs >= 1, "1 or more"),
        (f"{name}.batch_size", stage.batch_size, stage.batch_size >= 2, "2 or more"),
        (f"{name}.learning_rate", stage.learning_rate, 0 < stage.learning_rate <= _LARGEST_FACTOR,
         f"above 0, and {_LARGEST_FACTOR:.3g} at most"),
        (f"{name}.momentum", stage.momentum, 0 < stage.momentum < 1, "between 0 and 1"),
        (f"{name}.weight_decay", stage.weight_decay, 0 <= stage.weight_decay <= _LARGEST_FACTOR,
         f"in [0, {_LARGEST_FACTOR:.3g}]"),
        (f"{name}.warmup_epochs", stage.warmup_epochs, 0 <= stage.warmup_epochs <= stage.epochs,
         "between 0 and the number of epochs"),
        (f"{name}.decay", stage.decay, 0 < stage.decay <= 1, "in (0, 1]"),
    ]  # fmt: skip
    rules += [(f"{name}.milestones", m, 0 < m < 1, "fractions between 0 and 1") for m in stage.milestones]
    return rules
