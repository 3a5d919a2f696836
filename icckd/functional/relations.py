"""What a student is taught by: relations between the rows of a batch."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.library import CustomOpDef

from icckd.backends.arithmetic import accumulated
from icckd.functional import checks
from icckd.functional.sides import full_precision, gather_sides, norm, select, unit
from icckd.ops import distillation as ops
from icckd.ops.transforms import call, wants_gradient

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks

_EPSILON = 1e-7


def rkd_distance(
    student: Tensor, teacher: Tensor, *, group: "ProcessGroup | Ranks | None" = None, backend: str = "auto"
) -> Tensor:
    """Distance-wise relational distillation (Park et al. 2019, arXiv 1904.05068).

    With d_ij the Euclidean distance between rows i and j and μ the mean of the non-zero d_ij, for each network,

        loss = 1/N² Σ_ij smooth-L1(d_ij/μ of the student − d_ij/μ of the teacher), β = 1

    The gradient flows through μ too; a zero distance has none. The loss can be differentiated in reverse and in forward
    mode, once: a second derivative raises RuntimeError. Memory: O(N·D + N²).

    Args:
        student: (N, Ds) float features.
        teacher: (N, Dt) float features, of any float dtype and width; they get no gradient.
        group: Process group whose ranks all call this at the same time, each with its own rows, any number of them, or
            an `icckd.exchange.Ranks`, which knows how many without asking. Every rank returns the loss of all
            ranks' rows together; after averaging over the ranks the gradients are that loss's, too. Not within a
            transform of torch.func or in forward mode: RuntimeError.
        backend: Who computes: "auto", "reference", "cpu", "cuda" or "triton".

    Returns:
        A scalar, float32 (float64 where an input is); 0 for N < 2.

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape or device.
        BackendUnavailable: The backend asked for cannot run here.
    """
    return _relational(ops.rkd_distance, student, teacher, group, backend)


def rkd_angle(
    student: Tensor, teacher: Tensor, *, group: "ProcessGroup | Ranks | None" = None, backend: str = "auto"
) -> Tensor:
    """Angle-wise relational distillation (Park et al. 2019, arXiv 1904.05068).

    With u_ij the unit vector from row j to row i (0 between equal rows), for each network,

        loss = 1/N³ Σ_ijk smooth-L1(u_ij·u_kj of the student − u_ij·u_kj of the teacher), β = 1

    Memory: O(N·D + N²).

    Args, Returns, Raises: As for `rkd_distance`.
    """
    return _relational(ops.rkd_angle, student, teacher, group, backend)


def similarity_preserving(
    student: Tensor, teacher: Tensor, *, group: "ProcessGroup | Ranks | None" = None, backend: str = "auto"
) -> Tensor:
    """Similarity-preserving distillation (Tung and Mori 2019, arXiv 1907.09682).

    With F the rows, flattened, G = F Fᵀ and Ĝ its rows divided by their Euclidean norm, for each network,

        loss = ‖Ĝ of the student − Ĝ of the teacher‖²_F / N²

    A zero row has a zero row in Ĝ, without gradient: this project's choice. Memory: O(N·D + N²), with `group` N times
    the rank's own rows instead of N².

    Args:
        student: (N, …) float features.
        teacher: (N, …) float features, of any float dtype and other shape; they get no gradient.
        group: Process group whose ranks all call this at the same time, each with its own rows, any number of them, or
            an `icckd.exchange.Ranks`, which knows how many without asking. The mean over the ranks of what they return
            is the loss of all ranks' rows together; after averaging over the ranks the gradients are that loss's, too.
            Not within a transform of torch.func or in forward mode: RuntimeError.
        backend: "auto" or "reference": there are no kernels for it.

    Returns:
        A scalar, float32 (float64 where an input is); 0 for N = 0.

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape or device.
        BackendUnavailable: The backend asked for cannot run here.
    """
    student, teacher, own, share = _flat_rows(student, teacher, group, backend, "similarity_preserving")
    if student.shape[0] == 0:
        return student.sum()
    with full_precision(student):
        s, t = (unit(x[own] @ x.T) for x in map(_within_one, (student, teacher)))
        return (s - t).square().sum() * share


def pkt(
    student: Tensor, teacher: Tensor, *, group: "ProcessGroup | Ranks | None" = None, backend: str = "auto"
) -> Tensor:
    """Probabilistic knowledge transfer (Passalis and Tefas 2018, arXiv 1803.10837).

    With z the rows, flattened, divided by their Euclidean norm + ε, K_ij = (z_i·z_j + 1)/2, and K̂ its rows divided by
    their sums, for each network, and ε = 1e-7,

        loss = 1/N² Σ_ij K̂_ij log((K̂_ij + ε) / (K̂'_ij + ε)), of the teacher against the student's K̂'

    A zero row stays zero, without gradient: this project's choice. Memory: O(N·D + N²), with `group` N times the rank's
    own rows instead of N².

    Args, Returns, Raises: As for `similarity_preserving`.
    """
    student, teacher, own, share = _flat_rows(student, teacher, group, backend, "pkt")
    with full_precision(student):
        log_p, log_q = ((_affinities(x, own) + _EPSILON).log() for x in (student, teacher))
        # Σ (K̂' − K̂) = 0 is added: the terms are not negative then, and none cancels another.
        excess = log_q - log_p
        terms = log_q.exp() * (torch.expm1(-excess) + excess) - _EPSILON * excess
        return terms.sum() * share


def _relational(
    operator: CustomOpDef, student: Tensor, teacher: Tensor, group: "ProcessGroup | Ranks | None", backend: str
) -> Tensor:
    checks.float_matrix("student", student)
    checks.float_matrix("teacher", teacher, rows=student.shape[0])
    checks.same_device("teacher", teacher, "student", student)
    backend = select(backend, student, teacher, "relational")
    teacher = teacher.detach()
    if group is not None:
        student, teacher, _ = gather_sides({"student": student}, {"teacher": teacher}, group)
    need_grad = wants_gradient(student) or torch.jit.is_tracing()
    loss, _ = call(operator, student, teacher, need_grad, backend)
    return loss


def _flat_rows(
    student: Tensor, teacher: Tensor, group: "ProcessGroup | Ranks | None", backend: str, family: str
) -> tuple[Tensor, Tensor, slice, float]:
    """All ranks' rows (N, D) of both sides, in the loss's dtype; which are this rank's own; the weight of a pair."""
    checks.float_rows("student", student)
    checks.float_rows("teacher", teacher, rows=student.shape[0])
    checks.same_device("teacher", teacher, "student", student)
    select(backend, student, teacher, family)
    student, teacher = student.flatten(1), teacher.detach().flatten(1)
    own, ranks = slice(None), 1
    if group is not None:
        student, teacher, together = gather_sides({"student": student}, {"teacher": teacher}, group)
        own, ranks = together.own, together.size
    return *accumulated(student, teacher), own, ranks / max(student.shape[0] ** 2, 1)


def _within_one(x: Tensor) -> Tensor:
    """x divided by its largest magnitude, of which fourth powers would overflow; Ĝ stays the same."""
    largest = x.detach().abs().amax()
    return x / torch.where(largest == 0, 1, largest)


def _affinities(x: Tensor, own: slice) -> Tensor:
    """Cosines of own rows with all, from 0 to 1, each row divided by its sum."""
    length = norm(x)
    z = (x / (length + _EPSILON)).masked_fill(length == 0, 0)
    # Rounding could take the cosine of opposite rows below −1.
    affinities = ((z[own] @ z.T + 1) / 2).clamp(min=0)
    return affinities / affinities.sum(1, keepdim=True)
