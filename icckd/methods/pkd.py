"""Partial distillation in federated learning: experts teach what the network takes for something else of their group.

The idea is that of arXiv 2411.15403, which publishes no formulas that this could follow: those here are this project's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from icckd.backends.arithmetic import accumulation_dtype
from icckd.functional import kd_kl
from icckd.methods.base import MethodSettings, Rule, StudentProcedure, above_zero, register

Group = tuple[int, ...]


@dataclass
class PkdSettings(MethodSettings):
    """Partial distillation in federated learning (the idea of arXiv 2411.15403; the formulas are this project's).

    A server averages what clients (federated.clients) learn from their own images. After a warm-up it asks them once
    which classes the network takes for which; for each group of classes that are confused an expert is trained, and
    from then on clients learn from it on those images of the group that are taken for another class of the group. The
    teacher is not asked.

    Args:
        weight: Weight λ of what is learnt from experts (0: federated averaging alone). A batch has few images that are
            confused, over whose number the loss is a mean: each weighs far more than one of the cross-entropy's.
        temperature: Temperature T that softens the predictions of experts and student.
        warmup_rounds: Rounds of federated averaging alone, before which no class is called weak (null: half of
            federated.rounds; of a single round there is nothing but the warm-up).
        threshold: A class is weak where its recall is below the mean over all classes by more than this.
        confusion: A weak class and another are of one group where of each class this fraction of its images or more is
            taken for the other.
        expert_rounds: Rounds in which each group's expert is trained, on the images of the group alone.
    """

    weight: float = 0.2
    temperature: float = 1.0
    warmup_rounds: int | None = None
    threshold: float = 0.02
    confusion: float = 0.01
    expert_rounds: int = 5

    def warmup(self, rounds: int) -> int:
        """The rounds of warm-up, of so many rounds."""
        return max(rounds // 2, 1) if self.warmup_rounds is None else self.warmup_rounds

    def rules(self) -> dict[str, Rule]:
        return {
            **super().rules(),
            "temperature": above_zero(self.temperature),
            "warmup_rounds": Rule(self.warmup_rounds is None or self.warmup_rounds >= 1, "null, or 1 or more"),
            "threshold": Rule(0 <= self.threshold < 1, "in [0, 1)"),
            "confusion": Rule(0 < self.confusion <= 1, "in (0, 1]"),
            "expert_rounds": Rule(self.expert_rounds >= 1, "1 or more"),
        }


def weak_classes(confusion: Tensor, threshold: float) -> list[int]:
    """The classes whose recall is below the mean over the classes by more than `threshold`, in order.

    `confusion` (C, C), integer, counts the images of class a (row) that are taken for b (column). A class without
    images has no recall: it is neither weak nor in the mean.
    """
    images = confusion.sum(1)
    recall = confusion.diagonal().double() / images
    mean = recall[images > 0].mean()
    return torch.nonzero(recall < mean - threshold).flatten().tolist()


def confusion_groups(confusion: Tensor, weak: Sequence[int], least: float) -> list[Group]:
    """Groups of classes, each rising, in the order of their first classes.

    With r_ab the fraction of the images of class a that are taken for b, two classes are mutually confused where
    min(r_ab, r_ba) ≥ `least` > 0. The groups are the connected components of the graph whose edges are the mutually
    confused pairs of which one class or both are `weak`. A class without such an edge is in no group.
    """
    rates = confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)
    mutual = torch.minimum(rates, rates.T) >= least
    is_weak = torch.zeros(len(confusion), dtype=torch.bool, device=confusion.device)
    is_weak[list(weak)] = True
    edges = mutual & (is_weak[:, None] | is_weak)
    edges.fill_diagonal_(False)
    neighbours = [torch.nonzero(row).flatten().tolist() for row in edges]
    groups: list[Group] = []
    for first in range(len(confusion)):
        if neighbours[first] and not any(first in group for group in groups):
            groups.append(_connected(first, neighbours))
    return groups


def _connected(first: int, neighbours: Sequence[Sequence[int]]) -> Group:
    found, pending = {first}, [first]
    while pending:
        new = set(neighbours[pending.pop()]) - found
        found |= new
        pending += new
    return tuple(sorted(found))


@register
class Pkd(StudentProcedure):
    """CE + λ · (1/|S|) Σ_{i∈S} T² KL(softmax(e_i/T) ‖ softmax(s_i/T)), both over the classes of the group of i.

    S are the images of the batch whose label y_i is in a group and whose largest logit is that of another class of this
    group; s_i are the student's logits, e_i those of the group's expert. The second term is 0 where S is empty. Groups
    have no class in common.
    """

    name = "pkd"
    settings: PkdSettings
    asks_teacher = False

    def forward(
        self, logits: Tensor, labels: Tensor, groups: Sequence[Group], experts: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The losses by name, of the student's logits (B, C), labels (B,) and each group's expert's logits (B, C).

        Experts get no gradient.
        """
        logits = logits.to(accumulation_dtype(logits))
        hard = cross_entropy(logits, labels)
        soft = self.partial_divergence(logits, labels, groups, experts)
        return {"loss": hard + self.settings.weight * soft, "cross_entropy": hard, "pkd": soft}

    def partial_divergence(
        self, logits: Tensor, labels: Tensor, groups: Sequence[Group], experts: Sequence[Tensor]
    ) -> Tensor:
        """The second term, without its weight, 0-dim."""
        predicted = logits.detach().argmax(1)
        total, number = logits.new_zeros(()), labels.new_zeros(())
        for group, expert in zip(groups, experts, strict=True):
            classes = torch.tensor(group, device=labels.device)
            confused = (predicted != labels) & torch.isin(labels, classes) & torch.isin(predicted, classes)
            divergence = kd_kl(
                logits[:, classes],
                expert[:, classes],
                temperature=self.settings.temperature,
                reduction="none",
                backend=self.backend,
            )
            total = total + torch.where(confused, divergence, 0).sum()
            number = number + confused.sum()
        return total / number.clamp(min=1)

    def expert_loss(self, logits: Tensor, labels: Tensor, group: Group) -> Tensor:
        """What an expert learns by: the cross-entropy over the classes of its group, of images of the group alone."""
        classes = torch.tensor(group, device=labels.device)
        restricted = logits[:, classes].to(accumulation_dtype(logits))
        return cross_entropy(restricted, torch.searchsorted(classes, labels))
