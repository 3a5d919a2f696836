"""What a student is taught by: its teacher's predictions."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from icckd.backends.arithmetic import accumulated, accumulation_dtype, divergence
from icckd.functional import checks
from icckd.functional.sides import full_precision, gather_sides, norm, select, unit
from icckd.ops import distillation as ops
from icckd.ops.rest_divergence import rest_divergence_rows
from icckd.ops.transforms import call, differentiable, wants_gradient

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks

_REDUCTIONS = ("batchmean", "sum", "none")
# The temperature from which on too little is left in float32 of what cancels in a divergence.
_CANCELLING = 32.0
# Deviations no longer than so many roundings of the numbers are none.
_ROUNDINGS = 8


def kd_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    standardize: bool = False,
    reduction: str = "batchmean",
    backend: str = "auto",
) -> Tensor:
    """Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531): the divergence of softened predictions.

    With q = softmax(teacher/T) and p = softmax(student/T), row by row,

        ℓ_i = T² KL(q_i ‖ p_i) = T² Σ_c q_i[c] (log q_i[c] − log p_i[c]), where a class with q_i[c] = 0 adds 0
        "none": ℓ_i (N,)    "sum": Σ ℓ_i    "batchmean": Σ ℓ_i / N (0 for N = 0)

    The loss can be differentiated in reverse and in forward mode, once: a second derivative raises RuntimeError.

    Args:
        student_logits: (N, C) float, C ≥ 1.
        teacher_logits: (N, C) float, of any float dtype; it gets no gradient.
        temperature: T > 0. Divergences shrink with 1/T², beside sums that do not: from 32 on they are computed in
            float64, by PyTorch, whatever the backend, and rounded to the dtypes that they have below.
        standardize: First replace each row x by (x − mean)/(std + 1e-7), std unbiased (0 for C = 1), with the gradient
            through both: logit standardisation, Sun et al. 2024 (arXiv 2403.01427).
        reduction: "batchmean", "sum" or "none".
        backend: Who computes: "auto", "reference", "cpu", "cuda" or "triton".

    Returns:
        (N,) or a scalar, float32 (float64 where an input is).

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value.
        BackendUnavailable: The backend asked for cannot run here.
    """
    _check_logits(student_logits, teacher_logits, temperature)
    checks.one_of("reduction", reduction, _REDUCTIONS)
    (student,), teacher = differentiable(student_logits), teacher_logits.detach()
    backend, dtype = select(backend, student, teacher, "kd_kl"), accumulation_dtype(student, teacher)
    student, teacher, backend = _uncancelled(student, teacher, temperature, backend)
    # A float16 gradient of a mean could underflow before the loss scale is applied: it is computed in backward, scaled.
    if reduction == "none" or not wants_gradient(student) or student.dtype == torch.float16:
        losses = call(ops.kd_kl_rows, student, teacher, temperature, standardize, backend)
        if reduction == "none":
            return losses.to(dtype)
        return (losses.sum() if reduction == "sum" else _mean(losses)).to(dtype)
    loss, _ = call(ops.kd_kl_sum, student, teacher, temperature, standardize, reduction == "batchmean", backend)
    return loss.to(dtype)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    backend: str = "auto",
) -> Tensor:
    """Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679): the label, and the others, each by itself.

    With q = softmax(teacher/T), p = softmax(student/T), y the label and q̂, p̂ the softmax of all classes but y,

        loss = T²/N Σ_i [ α KL((q_y, 1 − q_y) ‖ (p_y, 1 − p_y)) + β KL(q̂ ‖ p̂) ]

    where a class with q̂ = 0 adds 0. Where no other class is left (C = 1, or the teacher rules all of them out), the
    second divergence is 0: this project's choice. The loss can be differentiated in reverse and in forward mode, once:
    a second derivative raises RuntimeError.

    Args:
        student_logits: (N, C) float, C ≥ 1.
        teacher_logits: (N, C) float, of any float dtype; it gets no gradient.
        labels: (N,) integers in [0, C).
        alpha: α ≥ 0, the weight of the label against the rest.
        beta: β ≥ 0, the weight of the divergence among the others.
        temperature: T > 0. From 32 on the loss is computed in float64, by PyTorch, as in `kd_kl`.
        backend: Who computes: "auto", "reference", "cpu" or "triton".

    Returns:
        A scalar, float32 (float64 where an input is); 0 for N = 0.

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value. A label that names no class is
            noticed on the CPU only: looking at a GPU's would synchronise. There its row makes loss and gradient NaN.
        BackendUnavailable: The backend asked for cannot run here.
    """
    checks.non_negative_number("alpha", alpha)
    checks.non_negative_number("beta", beta)
    rest, dtype = _label_and_rest(student_logits, teacher_logits, labels, temperature, temperature, backend)
    of_rest, _, odds, teacher_odds = rest
    rows = alpha * _divergence_of_odds(teacher_odds, odds) + beta * of_rest
    return (temperature**2 * _mean(rows)).to(dtype)


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Normalised knowledge distillation (Yang et al. 2023, arXiv 2303.13005): cross-entropies with the teacher.

    With q = softmax(teacher), p = softmax(student), y the label and q̂, p̂ the softmax of all classes but y at
    temperature T,

        loss = −1/N Σ_i [ q_y log p_y + γ T² Σ_{c≠y} q̂_c log p̂_c ], where a class of share 0 adds 0

    so a student equal to its teacher keeps the teacher's entropy as its loss. Where no other class is left, the second
    term is 0. The loss can be differentiated in reverse and in forward mode, once: a second derivative raises
    RuntimeError.

    Args:
        gamma: γ ≥ 0, the weight of the other classes.
        temperature: T > 0, of the other classes only; the label's share is taken at temperature 1. From 32 on the loss
            is computed in float64, by PyTorch, as in `kd_kl`.

    Other Args, Returns, Raises: As for `dkd`.
    """
    checks.non_negative_number("gamma", gamma)
    rest, dtype = _label_and_rest(student_logits, teacher_logits, labels, temperature, 1.0, backend)
    of_rest, entropy, odds, teacher_odds = rest
    share = teacher_odds.sigmoid()
    of_label = share * logsigmoid(odds).masked_fill(share == 0, 0)
    rows = gamma * temperature**2 * (of_rest + entropy) - of_label
    return _mean(rows).to(dtype)


def ttm(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    gamma: float = 0.1,
    weighted: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Transformed teacher matching (Zheng and Yang 2024, arXiv 2402.11148): only the teacher is softened.

    With q = softmax(teacher), p = softmax(student), Z = Σ_c q_c^γ and q̃ = q^γ / Z, which is softmax(γ · teacher),

        loss = 1/N Σ_i KL(q̃ ‖ p), or weighted 1/N Σ_i Z KL(q̃ ‖ p), where a class with q̃ = 0 adds 0

    The loss can be differentiated in reverse and in forward mode, once: a second derivative raises RuntimeError.

    Args:
        student_logits: (N, C) float, C ≥ 1.
        teacher_logits: (N, C) float, of any float dtype; it gets no gradient.
        gamma: γ > 0; 1/γ is the teacher's temperature.
        weighted: Weight a row by Z, the more the less certain the teacher is of it: Z is C^(1 − γ) where it knows
            nothing, and 1 where it is certain.
        backend: Who computes: "auto", "reference", "cpu" or "triton".

    Returns:
        A scalar, float32 (float64 where an input is); 0 for N = 0.

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value.
        BackendUnavailable: The backend asked for cannot run here.
    """
    _check_logits(student_logits, teacher_logits)
    checks.positive_number("gamma", gamma)
    (student,), teacher = differentiable(student_logits), teacher_logits.detach()
    backend = select(backend, student, teacher, "transformed_teacher")
    return _mean(call(ops.transformed_teacher_rows, student, teacher, gamma, weighted, backend))


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    group: "ProcessGroup | Ranks | None" = None,
    backend: str = "auto",
) -> Tensor:
    """Distillation from a stronger teacher (Huang et al. 2022, arXiv 2205.10536): predictions need only correlate.

    With p = softmax(student/T), q = softmax(teacher/T), and r Pearson's correlation,

        loss = T² [ β (1 − 1/N Σ_i r(p_i, q_i)) + γ (1 − 1/C Σ_c r(p_·c, q_·c)) ]: of rows, and of columns

    What is constant correlates with nothing (r = 0), but two constants agree (r = 1), as the columns of a single row
    do; none has a gradient. Constant means up to eight roundings, or below the numbers whose reciprocals float32 holds.
    All of it is this project's choice.

    Args:
        student_logits: (N, C) float, C ≥ 1.
        teacher_logits: (N, C) float, of any float dtype; it gets no gradient.
        beta: β ≥ 0, the weight of the rows.
        gamma: γ ≥ 0, the weight of the columns.
        temperature: T > 0. From 32 on the loss is computed in float64, as in `kd_kl`.
        group: Process group whose ranks all call this at the same time, each with its own rows, any number of them, or
            an `icckd.exchange.Ranks`, which knows how many without asking. Every rank returns the loss of all
            ranks' rows together; after averaging over the ranks the gradients are that loss's, too. Not within a
            transform of torch.func or in forward mode: RuntimeError.
        backend: "auto" or "reference": there are no kernels for it.

    Returns:
        A scalar, float32 (float64 where an input is); 0 for N = 0.

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value.
        BackendUnavailable: The backend asked for cannot run here.
    """
    _check_logits(student_logits, teacher_logits, temperature)
    checks.non_negative_number("beta", beta)
    checks.non_negative_number("gamma", gamma)
    student, teacher = student_logits, teacher_logits.detach()
    backend, dtype = select(backend, student, teacher, "dist"), accumulation_dtype(student, teacher)
    if group is not None:
        student, teacher, _ = gather_sides({"student_logits": student}, {"teacher_logits": teacher}, group)
    student, teacher, _ = _uncancelled(student, teacher, temperature, backend)
    with full_precision(student):
        p, q = ((x / temperature).softmax(1) for x in accumulated(student, teacher))
        of_rows, of_columns = (_mean(_disagreement(p, q, dim)) for dim in (1, 0))
        return (temperature**2 * (beta * of_rows + gamma * of_columns)).to(dtype)


def _check_logits(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> None:
    checks.float_matrix("student_logits", student)
    rows, classes = student.shape
    checks.float_matrix("teacher_logits", teacher, rows, classes)
    if classes == 0:
        raise ValueError(f"student_logits has shape {tuple(student.shape)}; it should have at least one class")
    checks.same_device("teacher_logits", teacher, "student_logits", student)
    checks.positive_number("temperature", temperature)


def _label_and_rest(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, odds_temperature: float, backend: str
) -> tuple[tuple[Tensor, ...], torch.dtype]:
    """What `rest_divergence_rows` returns, each (N,), after all checks; and the loss's dtype."""
    _check_logits(student, teacher, temperature)
    checks.integer_vector("labels", labels, student.shape[0])
    checks.same_device("labels", labels, "student_logits", student)
    (student,), teacher = differentiable(student), teacher.detach()
    backend, dtype = select(backend, student, teacher, "rest_divergence"), accumulation_dtype(student, teacher)
    student, teacher, backend = _uncancelled(student, teacher, temperature, backend)
    rows = call(rest_divergence_rows, student, teacher, labels.long(), temperature, odds_temperature, backend)
    return rows, dtype


def _uncancelled(student: Tensor, teacher: Tensor, temperature: float, backend: str) -> tuple[Tensor, Tensor, str]:
    """Both sides, and who computes: at high temperatures in float64, by PyTorch."""
    if temperature < _CANCELLING:
        return student, teacher, backend
    return student.double(), teacher.double(), "reference"


def _divergence_of_odds(teacher_odds: Tensor, odds: Tensor) -> Tensor:
    """KL((q, 1 − q) ‖ (p, 1 − p)) for log-odds of q and p."""
    log_q, log_p = (torch.stack([logsigmoid(x), logsigmoid(-x)], 1) for x in (teacher_odds, odds))
    return divergence(log_q, log_p)


def _disagreement(p: Tensor, q: Tensor, dim: int) -> Tensor:
    """1 − Pearson's correlation along a dimension, by the difference of unit vectors: it does not cancel near 0."""
    u, v = _standard_deviations(p, dim), _standard_deviations(q, dim)
    one_constant = u.eq(0).all(dim) ^ v.eq(0).all(dim)
    return ((u - v).square().sum(dim) + one_constant) / 2


def _standard_deviations(x: Tensor, dim: int) -> Tensor:
    """Deviations from the mean, divided by their length; 0 where x is constant."""
    deviations = x - x.mean(dim, keepdim=True)
    held = torch.finfo(x.dtype)
    rounding = (_ROUNDINGS * held.eps * norm(x, dim)).clamp(min=held.tiny / held.eps)
    return unit(deviations.masked_fill(norm(deviations, dim) <= rounding, 0), dim)


def _mean(rows: Tensor) -> Tensor:
    # Not len, a number for good: graphs that record this serve any number of rows.
    return rows.sum() / max(rows.shape[0], 1)
