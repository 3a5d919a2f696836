"""The definitions of what compares predictions: a student's logits with a teacher's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from icckd.reference.arithmetic import accumulated, divergence, norm, unit

# A row whose deviations are no longer than so many roundings of its numbers is constant.
_ROUNDINGS = 8


def kd_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    standardize: bool = False,
    reduction: str = "batchmean",
) -> Tensor:
    """T² · KL(softmax(teacher/T) ‖ softmax(student/T)): Hinton et al. 2015 (arXiv 1503.02531).

    Args:
        student_logits: (N, C) float.
        teacher_logits: (N, C) float, never differentiated.
        temperature: T > 0, softening both distributions.
        standardize: Replace each row x by (x − mean)/(std + 1e-7) first, std unbiased: logit standardisation, Sun et
            al. 2024 (arXiv 2403.01427).
        reduction: "none": the divergence of each row (N,). "sum": their sum. "batchmean": their mean.

    Returns:
        (N,) or a scalar, float32 (float64 for float64 inputs).
    """
    student, teacher = accumulated(student_logits), accumulated(teacher_logits.detach())
    if standardize:
        student, teacher = _standardized(student), _standardized(teacher)
    student_log = (student / temperature).log_softmax(dim=1)
    teacher_log = (teacher / temperature).log_softmax(dim=1)
    rows = temperature**2 * divergence(teacher_log, student_log)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / max(len(rows), 1)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Decoupled knowledge distillation: Zhao et al. 2022 (arXiv 2203.08679).

    With q = softmax(teacher/T), p = softmax(student/T), y the label and q̂, p̂ the softmax of all classes but y,

        loss = T²/N Σ_i [ α KL((q_y, 1 − q_y) ‖ (p_y, 1 − p_y)) + β KL(q̂ ‖ p̂) ]

    Where no other class is left (C = 1, or the teacher rules all of them out), the second divergence is 0: this
    project's choice.

    Args:
        student_logits: (N, C) float.
        teacher_logits: (N, C) float, never differentiated.
        labels: (N,) integers in [0, C).
        alpha: Weight of the divergence of the label against the rest.
        beta: Weight of the divergence among the others.
        temperature: T > 0.

    Returns:
        A scalar, float32 (float64 for float64 inputs); 0 for N = 0.
    """
    student, teacher = accumulated(student_logits) / temperature, accumulated(teacher_logits.detach()) / temperature
    (log_q, of_label), (log_p, own) = _label_apart(teacher, labels), _label_apart(student, labels)
    rows = alpha * divergence(of_label, own) + beta * _without_nothing(divergence(log_q, log_p), log_q)
    return temperature**2 * _mean(rows)


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
) -> Tensor:
    """Normalised knowledge distillation: Yang et al. 2023 (arXiv 2303.13005).

    With q = softmax(teacher), p = softmax(student), y the label and q̂, p̂ the softmax of all classes but y at
    temperature T,

        loss = −1/N Σ_i [ q_y log p_y + γ T² Σ_{c≠y} q̂_c log p̂_c ], where a class of share 0 adds 0

    Args:
        student_logits: (N, C) float.
        teacher_logits: (N, C) float, never differentiated.
        labels: (N,) integers in [0, C).
        gamma: γ, the weight of the other classes.
        temperature: T > 0, of the other classes only.

    Returns:
        A scalar, float32 (float64 for float64 inputs); 0 for N = 0.
    """
    student, teacher = accumulated(student_logits), accumulated(teacher_logits.detach())
    (_, of_label), (_, own) = _label_apart(teacher, labels), _label_apart(student, labels)
    log_q, log_p = (_label_apart(x / temperature, labels)[0] for x in (teacher, student))
    rows = _cross_entropy(of_label[:, :1], own[:, :1]) + gamma * temperature**2 * _cross_entropy(log_q, log_p)
    return _mean(rows)


def ttm(student_logits: Tensor, teacher_logits: Tensor, *, gamma: float = 0.1, weighted: bool = False) -> Tensor:
    """Transformed teacher matching: Zheng and Yang 2024 (arXiv 2402.11148).

    With q = softmax(teacher), p = softmax(student), Z = Σ_c q_c^γ and q̃ = q^γ / Z, which is softmax(γ · teacher),

        loss = 1/N Σ_i KL(q̃ ‖ p), or weighted 1/N Σ_i Z KL(q̃ ‖ p)

    Args:
        student_logits: (N, C) float.
        teacher_logits: (N, C) float, never differentiated.
        gamma: γ > 0; 1/γ is the teacher's temperature.
        weighted: Weight a row by Z, the more the less certain the teacher is of it.

    Returns:
        A scalar, float32 (float64 for float64 inputs); 0 for N = 0.
    """
    log_q = accumulated(teacher_logits.detach()).log_softmax(dim=1)
    powers = gamma * log_q
    rows = divergence(powers.log_softmax(dim=1), accumulated(student_logits).log_softmax(dim=1))
    return _mean(powers.exp().sum(dim=1) * rows if weighted else rows)


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """Distillation from a stronger teacher: Huang et al. 2022 (arXiv 2205.10536).

    With p = softmax(student/T), q = softmax(teacher/T), and r Pearson's correlation,

        loss = T² [ β (1 − 1/N Σ_i r(p_i, q_i)) + γ (1 − 1/C Σ_c r(p_·c, q_·c)) ]: of rows, and of columns

    What is constant correlates with nothing (r = 0), but two constants agree (r = 1), as the columns of a single row
    do; none has a gradient. Constant means up to eight roundings. Both are this project's choice.

    Args:
        student_logits: (N, C) float.
        teacher_logits: (N, C) float, never differentiated.
        beta: Weight of the rows, β.
        gamma: Weight of the columns, γ.
        temperature: T > 0.

    Returns:
        A scalar, float32 (float64 for float64 inputs); 0 for N = 0.
    """
    p = (accumulated(student_logits) / temperature).softmax(dim=1)
    q = (accumulated(teacher_logits.detach()) / temperature).softmax(dim=1)
    of_rows, of_columns = _mean(1 - _correlation(p, q)), _mean(1 - _correlation(p.T, q.T))
    return temperature**2 * (beta * of_rows + gamma * of_columns)


def _mean(rows: Tensor) -> Tensor:
    return rows.sum() / max(len(rows), 1)


def _standardized(logits: Tensor) -> Tensor:
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def _label_apart(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """log-softmax over the classes that are not the label's (N, C), −∞ elsewhere; log-shares of it and of them (N, 2).

    Where no other class is left, −∞ everywhere.
    """
    labels = labels.long()[:, None]
    own = labels == torch.arange(logits.shape[1], device=logits.device)
    others = logits.masked_fill(own, -torch.inf)
    nothing = others.eq(-torch.inf).all(dim=1, keepdim=True)
    others = others.masked_fill(nothing, 0)
    total = others.logsumexp(dim=1).masked_fill(nothing.squeeze(1), -torch.inf)
    odds = logits.gather(1, labels).squeeze(1) - total
    shares = torch.stack([F.logsigmoid(odds), F.logsigmoid(-odds)], dim=1)
    return others.log_softmax(dim=1).masked_fill(nothing, -torch.inf), shares


def _without_nothing(rows: Tensor, log_q: Tensor) -> Tensor:
    """The rows, but 0 where the teacher leaves no class."""
    return rows.masked_fill(log_q.eq(-torch.inf).all(dim=1), 0)


def _cross_entropy(log_q: Tensor, log_p: Tensor) -> Tensor:
    q = log_q.exp()
    return -(q * log_p.masked_fill(q == 0, 0)).sum(dim=1)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's of each row of x with that of y."""
    u, v = unit(_deviations(x)), unit(_deviations(y))
    both_constant = u.eq(0).all(dim=1) & v.eq(0).all(dim=1)
    return (u * v).sum(dim=1).masked_fill(both_constant, 1)


def _deviations(x: Tensor) -> Tensor:
    """Rows less their means, exactly 0 where they are constant."""
    deviations = x - x.mean(dim=1, keepdim=True)
    rounding = _ROUNDINGS * torch.finfo(x.dtype).eps * norm(x)
    return deviations.masked_fill(norm(deviations) <= rounding, 0)
