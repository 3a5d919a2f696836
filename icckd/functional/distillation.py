"""What a student is taught by: softened predictions, and relations between the rows of a batch."""

import torch
from torch import Tensor
from torch.library import CustomOpDef

from icckd import backends
from icckd.functional import checks
from icckd.ops import distillation as ops
from icckd.ops.transforms import call, differentiable, wants_gradient

_REDUCTIONS = ("batchmean", "sum", "none")
# The temperature from which on too little is left in float32 of what cancels in a divergence.
_CANCELLING = 32.0


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
    checks.float_matrix("student_logits", student_logits)
    rows, classes = student_logits.shape
    checks.float_matrix("teacher_logits", teacher_logits, rows, classes)
    if classes == 0:
        raise ValueError(f"student_logits has shape {tuple(student_logits.shape)}; it should have at least one class")
    checks.same_device("teacher_logits", teacher_logits, "student_logits", student_logits)
    checks.positive_number("temperature", temperature)
    checks.one_of("reduction", reduction, _REDUCTIONS)
    (student,), teacher = differentiable(student_logits), teacher_logits.detach()
    backend = _select(backend, student, teacher, "kd_kl")
    dtype = _loss_dtype(student, teacher)
    if temperature >= _CANCELLING:
        student, teacher, backend = student.double(), teacher.double(), "reference"
    # A float16 gradient of a mean could underflow before the loss scale is applied: it is computed in backward, scaled.
    if reduction == "none" or not wants_gradient(student) or student.dtype == torch.float16:
        losses = call(ops.kd_kl_rows, student, teacher, temperature, standardize, backend)
        if reduction == "none":
            return losses.to(dtype)
        return (losses.sum() if reduction == "sum" else losses.sum() / max(rows, 1)).to(dtype)
    loss, _ = call(ops.kd_kl_sum, student, teacher, temperature, standardize, reduction == "batchmean", backend)
    return loss.to(dtype)


def rkd_distance(student: Tensor, teacher: Tensor, *, backend: str = "auto") -> Tensor:
    """Distance-wise relational distillation (Park et al. 2019, arXiv 1904.05068).

    With d_ij the Euclidean distance between rows i and j and μ the mean of the non-zero d_ij, for each network,

        loss = 1/N² Σ_ij smooth-L1(d_ij/μ of the student − d_ij/μ of the teacher), β = 1

    The gradient flows through μ too; a zero distance has none. The loss can be differentiated in reverse and in forward
    mode, once: a second derivative raises RuntimeError. Memory: O(N·D + N²).

    Args:
        student: (N, Ds) float features.
        teacher: (N, Dt) float features, of any float dtype and width; they get no gradient.
        backend: Who computes: "auto", "reference", "cpu", "cuda" or "triton".

    Returns:
        A scalar, float32 (float64 where an input is); 0 for N < 2.

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape or device.
        BackendUnavailable: The backend asked for cannot run here.
    """
    return _relational(ops.rkd_distance, student, teacher, backend)


def rkd_angle(student: Tensor, teacher: Tensor, *, backend: str = "auto") -> Tensor:
    """Angle-wise relational distillation (Park et al. 2019, arXiv 1904.05068).

    With u_ij the unit vector from row j to row i (0 between equal rows), for each network,

        loss = 1/N³ Σ_ijk smooth-L1(u_ij·u_kj of the student − u_ij·u_kj of the teacher), β = 1

    Memory: O(N·D + N²).

    Args, Returns, Raises: As for `rkd_distance`.
    """
    return _relational(ops.rkd_angle, student, teacher, backend)


def _relational(operator: CustomOpDef, student: Tensor, teacher: Tensor, backend: str) -> Tensor:
    checks.float_matrix("student", student)
    checks.float_matrix("teacher", teacher, rows=student.shape[0])
    checks.same_device("teacher", teacher, "student", student)
    backend = _select(backend, student, teacher, "relational")
    need_grad = wants_gradient(student) or torch.jit.is_tracing()
    loss, _ = call(operator, student, teacher.detach(), need_grad, backend)
    return loss


def _select(backend: str, student: Tensor, teacher: Tensor, family: str) -> str:
    return backends.select(backend, student.device, torch.promote_types(student.dtype, teacher.dtype), family)


def _loss_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
