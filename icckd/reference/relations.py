"""The definitions of what compares the relations between the rows of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from icckd.reference.arithmetic import accumulated, norm, unit

_EPSILON = 1e-7


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance-wise relational distillation: Park et al. 2019 (arXiv 1904.05068).

    Each network's Euclidean distances between its rows, divided by the mean of the non-zero ones, are compared by
    smooth-L1 (β = 1) and averaged over all N² pairs.

    Args:
        student: (N, Ds) float.
        teacher: (N, Dt) float, never differentiated.

    Returns:
        A scalar, float32 (float64 for float64 inputs).
    """
    relations = _relative_distances(accumulated(student)), _relative_distances(accumulated(teacher.detach()))
    return F.smooth_l1_loss(*relations, reduction="sum") / max(len(student) ** 2, 1)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Angle-wise relational distillation: Park et al. 2019 (arXiv 1904.05068).

    The cosines of the angles i–j–k at every vertex j, those between equal points being 0, are compared by smooth-L1
    (β = 1) and averaged over all N³ triples.

    Args:
        student: (N, Ds) float.
        teacher: (N, Dt) float, never differentiated.

    Returns:
        A scalar, float32 (float64 for float64 inputs).
    """
    relations = _angles(accumulated(student)), _angles(accumulated(teacher.detach()))
    return F.smooth_l1_loss(*relations, reduction="sum") / max(len(student) ** 3, 1)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation: Tung and Mori 2019 (arXiv 1907.09682).

    With F the rows, flattened, G = F Fᵀ and Ĝ its rows divided by their Euclidean norm, for each network,

        loss = ‖Ĝ of the student − Ĝ of the teacher‖²_F / N²

    A zero row has a zero row in Ĝ, without gradient: this project's choice.

    Args:
        student: (N, …) float.
        teacher: (N, …) float, of any other shape, never differentiated.

    Returns:
        A scalar, float32 (float64 for float64 inputs); 0 for N = 0.
    """
    s, t = (unit(x @ x.T) for x in _flat_rows(student, teacher))
    return (s - t).square().sum() / max(len(student) ** 2, 1)


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer: Passalis and Tefas 2018 (arXiv 1803.10837).

    With z the rows, flattened, divided by their Euclidean norm + ε, K_ij = (z_i·z_j + 1)/2, and K̂ its rows divided by
    their sums, for each network, and ε = 1e-7,

        loss = 1/N² Σ_ij K̂_ij log((K̂_ij + ε) / (K̂'_ij + ε)), of the teacher against the student's K̂'

    A zero row stays zero, without gradient: this project's choice.

    Args:
        student: (N, …) float.
        teacher: (N, …) float, of any other shape, never differentiated.

    Returns:
        A scalar, float32 (float64 for float64 inputs); 0 for N = 0.
    """
    p, q = (_affinities(x) for x in _flat_rows(student, teacher))
    return (q * ((q + _EPSILON) / (p + _EPSILON)).log()).sum() / max(len(student) ** 2, 1)


def _flat_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    return accumulated(student).flatten(1), accumulated(teacher.detach()).flatten(1)


def _affinities(x: Tensor) -> Tensor:
    """Cosines of the rows from 0 to 1, each row divided by its sum."""
    length = norm(x)
    z = (x / (length + _EPSILON)).masked_fill(length == 0, 0)
    # Rounding could take the cosine of opposite rows below −1.
    affinities = ((z @ z.T + 1) / 2).clamp(min=0)
    return affinities / affinities.sum(dim=1, keepdim=True)


def _relative_distances(x: Tensor) -> Tensor:
    distances = norm(x[:, None, :] - x[None, :, :]).squeeze(-1)
    total, count = distances.sum(), (distances > 0).sum()
    return distances / torch.where(count > 0, total / count.clamp(min=1), 1)


def _angles(x: Tensor) -> Tensor:
    towards = unit(x[None, :, :] - x[:, None, :])
    return towards @ towards.transpose(1, 2)
