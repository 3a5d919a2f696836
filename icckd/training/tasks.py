"""What is trained and by which losses; the loop knows nothing of either."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from icckd.data import Batch
from icckd.functional import kd_kl
from icckd.losses import TeacherLoss
from icckd.memory import ClassMemory
from icckd.settings import DistillationSettings, TeacherSettings


class Task(nn.Module):
    """A network in training together with its losses.

    `model` is the network whose parameters are trained; `views` how many augmented views of each image a batch holds.
    `forward(batch)` returns named 0-dim tensors, of which "loss" is minimised and the others are reported.
    """

    model: nn.Module
    views: int

    def after_step(self) -> None:
        """Called when a step's parameter update was made (not when it was skipped)."""


class TeacherTask(Task):
    """Cross-entropy on each image's first view, plus the intra-class loss between its two views.

    With weight 0 there is no second view to compute, and none is made.
    """

    def __init__(self, model: nn.Module, settings: TeacherSettings, classes: int, feature_dim: int):
        super().__init__()
        loss = settings.loss
        self.model = model
        self.views = 2 if loss.weight > 0 else 1
        self.criterion = TeacherLoss(
            loss.weight, loss.margin, loss.margin_space, loss.temperature, loss.label_smoothing, loss.backend
        )
        wants_memory = settings.memory > 0 and loss.weight > 0
        self.memory = ClassMemory(classes, settings.memory, feature_dim) if wants_memory else None
        self._latest: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        features, logits = self.model(torch.cat(batch.views))
        count = len(batch.labels)
        anchor, positive = features[:count], features[-count:]
        losses = self.criterion(logits[:count], batch.labels, anchor, positive, self.memory)
        self._latest = (anchor.detach(), batch.labels)
        return {"loss": losses.total, **{k: v for k, v in losses._asdict().items() if k != "total"}}

    def after_step(self) -> None:
        if self.memory is not None and self._latest is not None:
            self.memory.push(*self._latest)
        self._latest = None


class FrozenTeacher:
    """A trained network that only answers: normalised images (B, C, H, W) → logits (B, classes), without gradient.

    It is no nn.Module, so that it is neither trained nor saved with the student. `mean` and `std` are the statistics
    per channel that the images come normalised with; the teacher sees them normalised as in its own training.
    """

    def __init__(
        self,
        model: nn.Module,
        own_normalization: tuple[Sequence[float], Sequence[float]],
        normalization: tuple[Sequence[float], Sequence[float]],
    ):
        self.model = model.requires_grad_(False).eval()
        device = next(model.parameters()).device
        own_mean, own_std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in own_normalization)
        mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in normalization)
        self.scale = std / own_std
        self.shift = (mean - own_mean) / own_std

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        _, logits = self.model(images * self.scale + self.shift)
        return logits


class DistillationTask(Task):
    """Knowledge distillation (Hinton et al. 2015) from a frozen teacher that sees the same view as the student."""

    def __init__(self, model: nn.Module, teacher: FrozenTeacher, settings: DistillationSettings):
        super().__init__()
        self.model = model
        self.views = 1
        self.teacher = teacher
        self.settings = settings

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        (images,) = batch.views
        settings = self.settings
        _, logits = self.model(images)
        cross_entropy = nn.functional.cross_entropy(logits.float(), batch.labels)
        kd = kd_kl(
            logits,
            self.teacher(images),
            temperature=settings.temperature,
            standardize=settings.standardize,
            backend=settings.backend,
        )
        loss = settings.cross_entropy_weight * cross_entropy + settings.weight * kd
        return {"loss": loss, "cross_entropy": cross_entropy, "kd": kd}
