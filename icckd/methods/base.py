"""What a method is: its settings, what it needs of the networks, its trainable parts, its loss."""

import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, get_type_hints

from torch import Tensor, nn

from icckd.memory import ClassMemory
from icckd.registry import Registry

if TYPE_CHECKING:
    from icckd.exchange import Ranks

LARGEST_FACTOR = (2 - 2**-23) * 2.0**127  # The largest float32: PyTorch and its optimisers multiply by no more.


class Outputs(NamedTuple):
    """What a network says about B images.

    Attributes:
        features: (B, F) float, what its classifier sees.
        logits: (B, C) float.
        maps: By name, the maps (B, channels, H, W) of the stages that the method asked for.
    """

    features: Tensor
    logits: Tensor
    maps: Mapping[str, Tensor]


class Samples(NamedTuple):
    """Which images they are, and what a teacher remembers of others.

    Attributes:
        labels: int64 (B,).
        indices: Their places in the training data, int64 (B,).
        memory: Earlier embeddings, for a teacher's method that uses them; None where there are none yet.
        positives: For a teacher's method that takes them, in place of the second view's features: (B, F) float, without
            gradient.
        anchors: Of which images these are known, bool (B,); None: of all.
        ranks: Where several processes have a part of the batch each, and these are one's: how its rows are spread.
            Losses that compare rows take it as `group`.
        progress: The share of a teacher's epochs that are over.
        images: For a teacher's method, what the network saw of them first: the first views, float (B, C, H, W).
        ask: For a teacher's method: what the network, as it is, says about further images (B', C, H, W), in evaluation
            mode; gradients reach these images, and nothing of the network.
    """

    labels: Tensor
    indices: Tensor
    memory: ClassMemory | None = None
    positives: Tensor | None = None
    anchors: Tensor | None = None
    ranks: "Ranks | None" = None
    progress: float = 0.0
    images: Tensor | None = None
    ask: Callable[[Tensor], Outputs] | None = None

    def mean(self, total: Tensor) -> Tensor:
        """The mean over the images of what sums up to `total`, for a method that spans ranks.

        Of several ranks each gives the sum over its own; the mean over the ranks of what they get is that over all.
        """
        if self.ranks is None:
            return total / max(len(self.labels), 1)
        return total * (self.ranks.size / max(sum(self.ranks.counts), 1))


class Network(NamedTuple):
    """What is known of a network before training; maps: of every stage in order, channels, height and width."""

    feature_dim: int
    classes: int
    maps: Mapping[str, tuple[int, int, int]]


class Pair(NamedTuple):
    """Both networks of a distillation, and the labels of all N training images, int64 (N,), where they are used."""

    student: Network
    teacher: Network
    labels: Tensor


class TrainingSet(NamedTuple):
    """What a teacher's method may know of all N training images.

    Attributes:
        labels: int64 (N,).
        shape: Of an image: channels, height and width.
        candidates: Which classes the label of each may be, bool (N, C), where labels are sets (data.label_noise).
        people: Whose signal each is, int64 (N,), where data are of people.
    """

    labels: Tensor
    shape: tuple[int, int, int]
    candidates: Tensor | None = None
    people: Tensor | None = None


class EvaluationSet(NamedTuple):
    """The M test images, for what a teacher's method finds out about them after the training.

    Attributes:
        images: All in order, in batches: normalised, float (B, C, H, W).
        labels: int64 (M,).
        ask: What the trained network says about images, in evaluation mode, without gradient.
        people: Whose signal each is, int64 (M,), where data are of people.
    """

    images: Iterable[Tensor]
    labels: Tensor
    ask: Callable[[Tensor], Outputs]
    people: Tensor | None = None


class Findings(NamedTuple):
    """What a training leaves besides the network.

    Attributes:
        numbers: By name, for the network's entry in the summary: numbers, texts, lists and dictionaries of such.
        tensors: By name, kept in a file beside the network, which the report reads.
    """

    numbers: Mapping[str, Any] = {}
    tensors: Mapping[str, Tensor] = {}


class Rule(NamedTuple):
    """Whether a setting's value is right, and what would be."""

    holds: bool
    wanted: str


def not_negative(value: float) -> Rule:
    """That of a setting that is finite, and 0 or more."""
    return Rule(0 <= value < math.inf, "a finite number, 0 or more")


def above_zero(value: float) -> Rule:
    """That of a setting that is finite, and above 0."""
    return Rule(0 < value < math.inf, "a finite number above 0")


@dataclass
class MethodSettings:
    """Base of every method's settings: a dataclass whose docstring says under `Args:` what each of them means."""

    def rules(self) -> dict[str, Rule]:
        """Which values are right, by setting: every number is finite and not negative, unless a method says more."""
        numbers = {name: value for name, value in asdict(self).items() if isinstance(value, (int, float))}
        return {name: not_negative(value) for name, value in numbers.items()}


@dataclass
class StudentMethodSettings(MethodSettings):
    """What every distillation method has.

    Args:
        weight: What the method's loss is multiplied by.
        warmup_epochs: Epochs over which the weight first rises linearly: in epoch n it is n / warmup_epochs of itself.
    """

    weight: float = 1.0
    warmup_epochs: int = 0

    def weight_of(self, methods: int) -> float:
        """The weight in force where so many methods are summed, once it has risen."""
        return self.weight

    def warmth(self, epoch: int) -> float:
        """What the weight is multiplied by in `epoch`, counted from 0."""
        return min((epoch + 1) / self.warmup_epochs, 1.0) if self.warmup_epochs else 1.0


class Method(nn.Module):
    """Base of every kind of method. Its parameters are trained, saved in checkpoints, and dropped in the end.

    A method is a class with a `name`, `settings` annotated with the dataclass of its settings, and `forward`, decorated
    with `register` (CONTRIBUTING.md shows one).

    Attributes:
        spans_ranks: Where several processes have a part of the batch each: are the losses made of `samples.ranks`, so
            that their mean over the ranks is that of the whole batch? Unless so they are taken for means over rows, and
            weighted by each rank's share of them. A rank may have none.
    """

    name: ClassVar[str]
    spans_ranks: ClassVar[bool] = False
    settings: Any

    def __init__(self, settings: Any, backend: str):
        super().__init__()
        self.settings = settings
        self.backend = backend

    def after_step(self, taken: Tensor) -> None:
        """Called after each step's update; `taken`, 0-dim bool, says whether there was one, or the step was skipped.

        On a GPU nothing may wait for the answer: what is to be changed after a step is changed by `taken` there.
        """


class StudentMethod(Method):
    """A way for a student to learn from a teacher.

    Args:
        settings: The method's own.
        pair: The networks and the training labels.
        backend: Who computes the losses: "auto", "reference", "cpu", "cuda" or "triton".

    Attributes:
        settings: Annotate it with a subclass of StudentMethodSettings.
        cross_entropy_weight: The weight of the cross-entropy beside the method where it stands alone.
        holds_cross_entropy: Does the method's loss hold the student's cross-entropy already?
        student_stages, teacher_stages: The stages whose maps the method wants, set in `__init__`; none unless it does.
    """

    cross_entropy_weight: ClassVar[float] = 1.0
    holds_cross_entropy: ClassVar[bool] = False
    student_stages: tuple[str, ...] = ()
    teacher_stages: tuple[str, ...] = ()

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, backend)

    def forward(self, student: Outputs, teacher: Outputs, samples: Samples) -> Tensor:
        """The loss, 0-dim, not yet weighted. Nothing of `teacher` needs a gradient."""
        raise NotImplementedError


class StudentProcedure(Method):
    """What replaces a student's whole training: its losses. How it goes about it is said in `icckd.procedures`.

    Args:
        settings: The procedure's own.
        pair: The networks and the training labels.
        backend: Who computes the losses: "auto", "reference", "cpu", "cuda" or "triton".

    Attributes:
        settings: Annotate it with a subclass of MethodSettings.
        data_free: Does the student learn without the training images?
        asks_teacher: Does it learn from the teacher? Else a run of the student alone needs none.
        of_pixels: Does it change or make images as pixels in [0, 1], which signals are not?
    """

    data_free: ClassVar[bool] = False
    asks_teacher: ClassVar[bool] = True
    of_pixels: ClassVar[bool] = False

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, backend)


class TeacherMethod(Method):
    """A way to train a teacher.

    Args:
        settings: The method's own.
        network: The teacher.
        backend: Who computes the losses: "auto", "reference", "cpu", "cuda" or "triton".

    Attributes:
        settings: Annotate it with a subclass of MethodSettings.
        views: How many augmented views of each image it needs.
        strong_views: How many of them, the last ones, are varied by data.strong_augmentation; fewer than all. Set it in
            the class, or, where it depends on the settings, let `strong_views_of` say it and set it in `__init__`: that
            setting is shown where the method in force has any.
        takes_positives: Whether of a second view it needs no more than features to compare with, which `samples` can
            then hold instead (`teacher.positive`).
        detaches_features: Whether the gradient of the logits stops at the features: the network's classifier learns,
            and its trunk does not learn from it.
        uses_memory: Whether it reads the memory of earlier embeddings, if there is one, which others fill.
        stages: The stages whose maps it wants, set in `__init__`; none unless it does.
    """

    takes_positives: ClassVar[bool] = False
    detaches_features: ClassVar[bool] = False
    views: int = 1
    strong_views: int = 0
    uses_memory: bool = False
    stages: tuple[str, ...] = ()

    def __init__(self, settings: Any, network: Network, backend: str):
        super().__init__(settings, backend)

    @classmethod
    def strong_views_of(cls, settings: Any) -> int:
        """`strong_views` with these settings."""
        return cls.strong_views

    def prepare(self, known: TrainingSet) -> None:
        """Called once, before training and before any checkpoint is read. Raises UserError for data that it cannot use.

        Trainable parts whose sizes depend on the data are made here.
        """

    def findings(self, test: EvaluationSet) -> Findings:
        """Called once, after training: what the method finds out about the test images."""
        return Findings()

    def forward(self, outputs: Outputs, samples: Samples) -> dict[str, Tensor]:
        """Named 0-dim tensors; "loss" is minimised, the others are reported.

        `outputs` has `views` · B rows: those of the first view of each image, then those of the second; B where
        `samples` has positives.
        """
        raise NotImplementedError


METHODS: Registry[type[Method]] = Registry("method", "icckd.methods")


# What a method's settings, or its loss in a record, would hide if it had the name.
_TAKEN = (
    *("none", "loss", "method", "backend", "cross-entropy-weight"),
    *("weight", "margin", "margin-space", "temperature", "label-smoothing", "cross-entropy-views"),
    *("space", "projection-dim", "gate", "gate-share", "gate-width", "weight-warmup", "weight-decline"),
    *("target-ratio", "neighbours", "strong-second-view"),
)


def register(method: type[Method]) -> type[Method]:
    """Make a method known by its name. Raises TypeError where it says not what it is, ValueError for a wrong name."""
    base = StudentMethodSettings if issubclass(method, StudentMethod) else MethodSettings
    name, settings = getattr(method, "name", None), settings_type(method)
    if not isinstance(name, str):
        raise TypeError(f"{method.__name__}.name is missing; it should be the method's name")
    own = name.replace("_", "-")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*", name) or keyword.iskeyword(name) or own in _TAKEN:
        raise ValueError(
            f"{method.__name__}.name is {name!r}; it should be words of letters and digits, joined by hyphens, and "
            f"neither a word of Python nor one of {', '.join(_TAKEN)}"
        )
    # A derived class that is not decorated is a dataclass too, but without its own settings.
    if not (isinstance(settings, type) and issubclass(settings, base) and "__dataclass_fields__" in vars(settings)):
        raise TypeError(
            f"{method.__name__}.settings is annotated with {settings}; it should be a dataclass derived from "
            f"{base.__name__}, decorated with @dataclass"
        )
    needed = [field.name for field in fields(settings) if field.default is field.default_factory is MISSING]
    if needed:
        raise TypeError(f"{settings.__name__}.{needed[0]} has no default; every setting should have one")
    METHODS.add(name, method)
    return method


def settings_type(method: type[Method]) -> Any:
    """The dataclass of a method's settings."""
    return get_type_hints(method)["settings"]
