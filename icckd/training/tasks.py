"""What is trained and by which losses; the loop knows nothing of either."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from icckd.data import Batch
from icckd.memory import ClassMemory
from icckd.methods import Network, Outputs, Pair, Samples, StudentMethod
from icckd.models import Model
from icckd.settings import StudentLossSettings, TeacherSettings


class Task(nn.Module):
    """A network in training together with its losses.

    `model` is the network that is kept; the parameters of the losses are trained with it. `views` is how many augmented
    views of each image a batch holds, `epoch`, set by the loop, how many have been finished. `forward(batch)` returns
    named 0-dim tensors, of which "loss" is minimised and the others are reported.
    """

    model: nn.Module
    views: int
    epoch: int = 0

    def networks(self) -> list[nn.Module]:
        """Every network that a step asks: `model`, and what it learns from."""
        return [self.model]

    def after_step(self) -> None:
        """Called when a step's parameter update was made (not when it was skipped)."""


class TeacherTask(Task):
    """A network trained by the method that `settings` name."""

    def __init__(self, model: Model, settings: TeacherSettings):
        super().__init__()
        loss, capacity = settings.loss, settings.memory.capacity
        self.model = model
        memory = ClassMemory(model.classes, capacity, model.feature_dim) if capacity else None
        self.method = loss.method_class()(loss.method_settings(), describe(model), memory, loss.backend)
        self.views = self.method.views

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.method(ask(self.model, torch.cat(batch.views), self.method.stages), _samples(batch))

    def after_step(self) -> None:
        self.method.after_step()


class FrozenTeacher:
    """A trained network that only answers: normalised images (B, C, H, W) → its outputs, without gradient.

    It is no nn.Module, so that it is neither trained nor saved with the student. `mean` and `std` are the statistics
    per channel that the images come normalised with; the teacher sees them normalised as in its own training.
    """

    def __init__(
        self,
        model: Model,
        own_normalization: tuple[Sequence[float], Sequence[float]],
        normalization: tuple[Sequence[float], Sequence[float]],
    ):
        self.model = model.requires_grad_(False).eval()
        device = next(model.parameters()).device
        own_mean, own_std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in own_normalization)
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in normalization)
        self.scale = std / own_std
        self.shift = (mean - own_mean) / own_std

    def __call__(self, images: Tensor, stages: Sequence[str] = ()) -> Outputs:
        with torch.inference_mode():
            features, logits, maps = ask(self.model, images * self.scale + self.shift, stages)
        # What is made in inference mode cannot be saved for a backward; copies made outside of it can.
        return Outputs(features.clone(), logits.clone(), {name: x.clone() for name, x in maps.items()})


class DistillationTask(Task):
    """A student that learns from the labels and, by the methods that `settings` name, from a frozen teacher.

    Teacher and student see the same view, the teacher once a batch however many methods there are. `labels` are those
    of all training images.
    """

    def __init__(self, model: Model, teacher: FrozenTeacher, labels: Tensor, settings: StudentLossSettings):
        super().__init__()
        self.model = model
        self.views = 1
        self.teacher = teacher
        pair = Pair(describe(model), describe(teacher.model), labels)
        self.settings = settings.method_settings()
        self.weights = settings.weights()
        self.cross_entropy_weight = settings.weight_of_cross_entropy()
        self.methods = nn.ModuleDict(
            {
                name: method(self.settings[name], pair, settings.backend)
                for name, method in settings.method_classes().items()
            }
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        (images,) = batch.views
        methods = self._by_name()
        student = ask(self.model, images, _all(method.student_stages for method in methods.values()))
        cross_entropy = nn.functional.cross_entropy(student.logits.float(), batch.labels)
        loss, losses = self.cross_entropy_weight * cross_entropy, {}
        if methods:
            teacher = self.teacher(images, _all(method.teacher_stages for method in methods.values()))
            losses = {name: method(student, teacher, _samples(batch)) for name, method in methods.items()}
        for name, method in methods.items():
            loss = loss + self.weights[name] * method.settings.warmth(self.epoch) * losses[name]
        return {"loss": loss, "cross_entropy": cross_entropy, **losses}

    def networks(self) -> list[nn.Module]:
        return [self.model, self.teacher.model]

    def after_step(self) -> None:
        for method in self._by_name().values():
            method.after_step()

    def _by_name(self) -> dict[str, StudentMethod]:
        return cast(dict[str, StudentMethod], dict(self.methods.items()))


def ask(model: nn.Module, images: Tensor, stages: Sequence[str] = ()) -> Outputs:
    """What `model` says about `images`, with the maps of `stages`."""
    if not stages:
        features, logits = model(images)
        return Outputs(features, logits, {})
    return Outputs(*model(images, stages=stages))


def describe(model: Model) -> Network:
    """What a method may know of `model`, found by asking it about an empty image; nothing of the model changes."""
    modes = [(module, module.training) for module in model.modules()]
    image = next(model.parameters()).new_zeros(1, model.channels, model.image_size, model.image_size)
    with torch.no_grad():
        maps = ask(model.eval(), image, model.stage_names).maps
    for module, mode in modes:
        module.training = mode
    shapes = {name: (maps[name].shape[1], maps[name].shape[2], maps[name].shape[3]) for name in model.stage_names}
    return Network(model.feature_dim, model.classes, shapes)


def _all(stages: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted(set().union(*stages)))


def _samples(batch: Batch) -> Samples:
    return Samples(batch.labels, batch.indices)
