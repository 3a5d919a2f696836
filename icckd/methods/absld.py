"""Anti-bias soft label distillation: a robust student whose classes learn from soft labels of their own sharpness."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from icckd.functional import kd_kl
from icckd.methods.base import Findings, MethodSettings, Pair, Rule, StudentProcedure, above_zero, register


@dataclass
class AbsldSettings(MethodSettings):
    """Anti-bias soft label distillation (Zhao et al. 2023, arXiv 2312.05508): robust, by attacked images.

    Args:
        epsilon: The most that the attack changes a pixel by, of pixels in [0, 1].
        step_size: What each of its steps changes a pixel by.
        steps: How many steps it takes.
        start: Standard deviation of the normal noise that it starts from, of pixels in [0, 1].
        adversarial_weight: Weight of the loss on attacked images; that of the loss on images as they are is what is
            left to 1.
        temperature: Temperature of the soft labels of every class in the first epoch.
        lowest: The lowest temperature of a class.
        highest: The highest one.
        rate: How far a class's temperature moves after an epoch, at most (0: all stay what they are).
    """

    epsilon: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    start: float = 0.001
    adversarial_weight: float = 5 / 6
    temperature: float = 1.0
    lowest: float = 0.5
    highest: float = 5.0
    rate: float = 0.1

    def rules(self) -> dict[str, Rule]:
        within = self.lowest <= self.temperature <= self.highest
        return {
            **super().rules(),
            "epsilon": Rule(0 < self.epsilon <= 1, "in (0, 1]: pixels are"),
            "step_size": above_zero(self.step_size),
            "steps": Rule(self.steps >= 1, "1 or more"),
            "adversarial_weight": Rule(0 <= self.adversarial_weight <= 1, "in [0, 1]"),
            "lowest": above_zero(self.lowest),
            "temperature": Rule(within, f"between lowest and highest, {self.lowest:g} and {self.highest:g}"),
        }


@register
class Absld(StudentProcedure):
    """w · KL(P(τ_adv) ‖ p(x_adv)) + (1 − w) · KL(P(τ_nat) ‖ p(x)), means over the images.

    p is the student's softmax and P(τ) that of the teacher's logits about x divided by τ_y, the temperature of the
    image's class; attacked and natural images have temperatures of their own. x_adv is the image that raises
    KL(P(τ_adv) ‖ p(x')) within the attack's ball, about which the student is asked in evaluation mode. After each epoch
    temperatures follow the student's errors in it: `ClassTemperatures` says how.
    """

    name = "absld"
    of_pixels = True
    settings: AbsldSettings
    epoch: Tensor

    def __init__(self, settings: Any, pair: Pair, backend: str):
        super().__init__(settings, pair, backend)
        self.adversarial, self.natural = (ClassTemperatures(pair.student.classes, self.settings) for _ in range(2))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self._errors: tuple[Tensor, Tensor, Tensor] | None = None

    def begin(self, epoch: int) -> None:
        """Called before each step of epoch `epoch`, from 0: in the first one temperatures move, by the epoch before."""
        new = self.epoch < epoch
        self.adversarial.move(new)
        self.natural.move(new)
        self.epoch.fill_(epoch)

    def attacked(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """What the attack raises: Σ KL(P(τ_adv) ‖ p) over the images, of logits (B, C) about x' and about x."""
        softened = self.adversarial.soften(teacher, labels)
        return kd_kl(student, softened, temperature=1.0, reduction="sum", backend=self.backend)

    def forward(self, adversarial: Tensor, natural: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The losses, 0-dim, by name: "loss" and both divergences, not weighted.

        Args:
            adversarial: The student's logits (B, C) about attacked images.
            natural: Those about the images as they are.
            teacher: The teacher's about the images as they are; none of it needs a gradient.
            labels: int64 (B,).
        """
        divergences = [
            kd_kl(student, temperatures.soften(teacher, labels), temperature=1.0, backend=self.backend)
            for student, temperatures in ((adversarial, self.adversarial), (natural, self.natural))
        ]
        with torch.no_grad():
            errors = [cross_entropy(logits.float(), labels, reduction="none") for logits in (adversarial, natural)]
        self._errors = (labels, errors[0], errors[1])
        weight = self.settings.adversarial_weight
        return {
            "loss": weight * divergences[0] + (1 - weight) * divergences[1],
            "adversarial_divergence": divergences[0],
            "natural_divergence": divergences[1],
        }

    def after_step(self, taken: Tensor) -> None:
        if self._errors is not None:
            labels, adversarial, natural = self._errors
            self.adversarial.add(adversarial, labels, taken)
            self.natural.add(natural, labels, taken)
        self._errors = None

    def findings(self) -> Findings:
        """The temperatures of the last epoch, in the order of the classes."""
        return Findings(
            {
                "adversarial_temperatures": self.adversarial.temperature.tolist(),
                "natural_temperatures": self.natural.temperature.tolist(),
            }
        )


class ClassTemperatures(nn.Module):
    """A temperature for the soft labels of each of C classes, which falls where the class is hard for the student.

    With R_k the mean error, a cross-entropy, of an epoch's images of class k, and gap_k = R_k less the mean of R over
    the classes,

        τ_k ← clip(τ_k − rate · gap_k / max |gap|, lowest, highest)

    so that harder classes get sharper labels. A class without images keeps its temperature and is not in the mean, and
    so do all where every gap is 0 (both this project's choice). What is known of an epoch is in buffers: a training
    that is resumed within it goes on with the same.
    """

    temperature: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, classes: int, settings: AbsldSettings):
        super().__init__()
        self.rate, self.lowest, self.highest = settings.rate, settings.lowest, settings.highest
        self.register_buffer("temperature", torch.full((classes,), float(settings.temperature)))
        self.register_buffer("sums", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))

    def soften(self, logits: Tensor, labels: Tensor) -> Tensor:
        """`logits` (B, C), each row divided by the temperature of its label's class; float32, or float64 of such."""
        return logits / self.temperature[labels].unsqueeze(1)

    def add(self, errors: Tensor, labels: Tensor, taken: Tensor) -> None:
        """Remember the errors (B,) of images of these classes (B,), if `taken`, 0-dim bool."""
        self.sums.index_add_(0, labels, torch.where(taken, errors.double(), 0))
        self.counts.index_add_(0, labels, taken.to(torch.int64).expand_as(labels))

    def move(self, now: Tensor) -> None:
        """Move by what was remembered and forget that, if `now`, 0-dim bool."""
        known = self.counts > 0
        risk = torch.where(known, self.sums / self.counts, 0)
        gap = torch.where(known, risk - risk.sum() / known.sum().clamp(min=1), 0)
        largest = gap.abs().max()
        step = self.rate * gap / torch.where(largest > 0, largest, 1)
        moved = (self.temperature - step).clamp(self.lowest, self.highest)
        self.temperature.copy_(torch.where(now, moved, self.temperature))
        for remembered in (self.sums, self.counts):
            remembered.mul_(now.logical_not())
