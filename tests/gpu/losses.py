"""Every loss as a training step has it: inputs that can be overwritten in place, and their loss and gradients."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from icckd.functional import (
    bank_products,
    center_contrastive,
    cross_entropy_with_margin,
    hierarchical_similarity,
    intra_class_contrastive,
    kd_kl,
    rkd_angle,
    rkd_distance,
    supervised_contrastive,
)
from tests.gpu.conftest import Target
from tests.problems import bank_problem, logits_and_labels, problem, student_and_teacher


@dataclass
class Step:
    """inputs: All tensors; the first `differentiated` of them get a gradient. loss: A function of the inputs."""

    inputs: list[Tensor]
    differentiated: int
    loss: Callable[..., Tensor]

    def __call__(self) -> tuple[Tensor, ...]:
        """The loss and its gradients."""
        wanted = [x.detach().requires_grad_() for x in self.inputs[: self.differentiated]]
        loss = self.loss(*wanted, *self.inputs[self.differentiated :])
        return loss.detach(), *torch.autograd.grad(loss, wanted)

    def overwrite(self, other: "Step") -> None:
        """Take over another step's inputs, in place."""
        for mine, theirs in zip(self.inputs, other.inputs, strict=True):
            mine.copy_(theirs)


def intra_class(target: Target, seed: int = 0, slots: int = 0, dtype: torch.dtype = torch.bfloat16) -> Step:
    rows, dim, classes = target.choose((2000, 96, 25), (60, 9, 4))
    anchor, positive, labels, options = problem(rows, dim, classes, slots, dtype, seed, target.device)
    memory = [options["memory"], options["memory_labels"]] if slots else []

    def loss(
        anchor: Tensor, positive: Tensor, temperature: Tensor, labels: Tensor, gate: Tensor, *memory: Tensor
    ) -> Tensor:
        named = dict(zip(("memory", "memory_labels"), memory, strict=True)) if memory else {}
        return intra_class_contrastive(
            anchor,
            positive,
            labels,
            gate=gate,
            temperature=temperature,
            num_classes=classes + 1,
            backend=target.backend,
            **named,
        )

    temperature = torch.tensor(0.1 + 0.1 * seed, device=target.device)
    return Step([anchor, positive, temperature, labels, options["gate"], *memory], 3, loss)


def intra_class_with_memory(target: Target, seed: int = 0) -> Step:
    return intra_class(target, seed, slots=target.choose(3000, 40))


def supervised(target: Target, seed: int = 0) -> Step:
    if target.interpreted:
        pytest.skip("tests/functional interprets this")
    features, _, labels, _ = problem(2000, 96, 25, 0, torch.bfloat16, seed, target.device)

    def loss(features: Tensor, temperature: Tensor, labels: Tensor) -> Tensor:
        options = {"temperature": temperature, "num_classes": 26, "backend": target.backend}
        return supervised_contrastive(features, labels, **options)

    temperature = torch.tensor(0.1 + 0.1 * seed, device=target.device)
    return Step([features, temperature, labels], 2, loss)


def cross_entropy(target: Target, seed: int = 0) -> Step:
    rows, classes = target.choose((500, 1000), (9, 40))
    logits, labels = logits_and_labels(rows, classes, torch.bfloat16, seed, device=target.device)
    return Step([logits, labels], 1, lambda x, y: cross_entropy_with_margin(x, y, backend=target.backend)[0])


def distillation(target: Target, seed: int = 0) -> Step:
    rows, classes = target.choose((500, 1000), (9, 40))
    student, teacher = student_and_teacher(rows + seed, classes, dtype=torch.bfloat16, device=target.device)
    return Step([student[:rows], teacher[:rows]], 1, lambda x, y: kd_kl(x, y, standardize=True, backend=target.backend))


def relational(function: Callable[..., Tensor]) -> Callable[..., Step]:
    def make(target: Target, seed: int = 0) -> Step:
        rows = target.choose(200, 12)
        student, teacher = student_and_teacher(rows + seed, 64, 48, scale=1.0, device=target.device)
        return Step([student[:rows], teacher[:rows]], 1, lambda x, y: function(x, y, backend=target.backend))

    return make


def bank(target: Target, seed: int = 0) -> Step:
    sizes = target.choose((20, 5000, 128, 3000), (3, 70, 9, 20))
    tensors = bank_problem(*sizes, dtype=torch.bfloat16, bank_dtype=torch.float32, seed=seed, device=target.device)

    def loss(query: Tensor, bank: Tensor, index: Tensor, upstream: Tensor) -> Tensor:
        return (bank_products(query, bank, index, backend=target.backend) * upstream).sum()

    return Step(list(tensors), 1, loss)


def hierarchical(target: Target, seed: int = 0) -> Step:
    rows, dim, classes = target.choose((1000, 96, 25), (40, 9, 4))
    features, augmented, labels, _ = problem(rows, dim, classes, dtype=torch.bfloat16, seed=seed, device=target.device)

    def loss(features: Tensor, augmented: Tensor, labels: Tensor) -> Tensor:
        return hierarchical_similarity(features, labels, augmented=augmented, backend=target.backend)

    return Step([features, augmented, labels], 2, loss)


def centers(target: Target, seed: int = 0) -> Step:
    """On a GPU three chunks of logits."""
    rows, dim, classes = target.choose((2000, 64, 20_000), (9, 5, 7))
    labels = logits_and_labels(rows, classes, seed=seed)[1].to(target.device)
    rows_of_all, _ = student_and_teacher(rows + classes + seed, dim, dtype=torch.bfloat16, device=target.device)
    inputs = [rows_of_all[:rows], rows_of_all[rows : rows + classes], labels]
    return Step(inputs, 2, lambda x, c, y: center_contrastive(x, c, y, backend=target.backend))


# How to make the step, and an operator that the backend must have for it.
LOSSES = {
    "intra_class": (intra_class, "intra_class_sum"),
    "intra_class_with_memory": (intra_class_with_memory, "intra_class_sum"),
    "supervised_contrastive": (supervised, "intra_class_rows"),
    "cross_entropy": (cross_entropy, "cross_entropy_margin_sum"),
    "kd_kl": (distillation, "kd_kl_sum"),
    "rkd_distance": (relational(rkd_distance), "rkd_distance"),
    "rkd_angle": (relational(rkd_angle), "rkd_angle"),
    "bank": (bank, "bank_products"),
    "hierarchical": (hierarchical, "hierarchical_sum"),
    "center_contrastive": (centers, "cross_entropy_margin_sum"),
}
