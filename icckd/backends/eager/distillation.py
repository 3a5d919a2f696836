"""Distillation losses in plain PyTorch: any device, float16 to float64."""

from collections.abc import Iterator

import torch
from torch import Tensor

from icckd.backends.arithmetic import accumulated, divergence

# Numbers in one chunk of the differences between rows: a chunk stays in cache, and memory in O(N·D + N²).
_CHUNK_NUMBERS = 1 << 20


def kd_kl_rows(student: Tensor, teacher: Tensor, temperature: float, standardize: bool) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)) of every row; float32 (float64 where an input is)."""
    student, teacher = accumulated(student, teacher)
    log_p = (_standardized(student)[0] if standardize else student).div(temperature).log_softmax(1)
    log_q = (_standardized(teacher)[0] if standardize else teacher).div(temperature).log_softmax(1)
    return temperature**2 * divergence(log_q, log_p)


def kd_kl_rows_backward(
    grad_rows: Tensor, student: Tensor, teacher: Tensor, temperature: float, standardize: bool
) -> Tensor:
    """The gradient of Σ grad_rows · rows with respect to the student's logits, in their dtype."""
    return _kd_kl(student, teacher, temperature, standardize, grad_rows[:, None])[1]


def kd_kl_sum(
    student: Tensor, teacher: Tensor, temperature: float, standardize: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """scale · Σ rows, and its gradient with respect to the student's logits."""
    rows, gradient = _kd_kl(student, teacher, temperature, standardize, scale)
    return scale * rows.sum(), gradient


def transformed_teacher_rows(student: Tensor, teacher: Tensor, gamma: float, weighted: bool) -> Tensor:
    """KL(q^γ / Z ‖ p) of every row, times Z = Σ q^γ where they are weighted; float32 (float64 where an input is)."""
    student, teacher = accumulated(student, teacher)
    log_q, weight = _transformed(teacher, gamma, weighted)
    return weight * divergence(log_q, student.log_softmax(1))


def transformed_teacher_rows_backward(
    grad_rows: Tensor, student: Tensor, teacher: Tensor, gamma: float, weighted: bool
) -> Tensor:
    """The gradient of Σ grad_rows · rows with respect to the student's logits, in their dtype."""
    x, y = accumulated(student, teacher)
    log_q, weight = _transformed(y, gamma, weighted)
    return ((grad_rows * weight)[:, None] * (x.softmax(1) - log_q.exp())).to(student.dtype)


def rkd_distance(student: Tensor, teacher: Tensor, need_grad: bool) -> tuple[Tensor, Tensor]:
    """The distance-wise relational loss and its gradient with respect to the student, in the loss's dtype."""
    s, t = accumulated(student, teacher)
    distance, scale = _distances(s)
    teacher_distance, teacher_scale = _distances(t)
    delta = distance * scale - teacher_distance * teacher_scale
    loss = _mean(_smooth_l1(delta), len(s) ** 2)
    if not need_grad:
        return loss, s.new_empty(0)
    # scale = 1/mean: d(distance · scale) = scale · d(distance) − distance · scale² · d(mean)
    slope = delta.clamp(-1, 1) / delta.numel()
    pairs = (distance != 0).sum().clamp(min=1)
    slope = slope * scale - (slope * distance).sum() * scale**2 / pairs
    pull = torch.where(distance == 0, 0, 2 * slope / distance)
    gradient = [(pull[rows, :, None] * (s[rows, None] - s)).sum(1) for rows in _chunks(len(s), len(s) * s.shape[1])]
    return loss, torch.cat(gradient) if gradient else torch.zeros_like(s)


def rkd_angle(student: Tensor, teacher: Tensor, need_grad: bool) -> tuple[Tensor, Tensor]:
    """The angle-wise relational loss and its gradient with respect to the student, in the loss's dtype."""
    s, t = accumulated(student, teacher)
    count = len(s)
    total, gradient = s.new_zeros(()), torch.zeros_like(s) if need_grad else s.new_empty(0)
    numbers = count * (s.shape[1] + t.shape[1] + count)
    # The products are of float32 numbers made here: autocast would round them to half precision.
    with torch.autocast(s.device.type, enabled=False):
        for vertices in _chunks(count, numbers):
            u, inverse = _directions(s, vertices)
            v, _ = _directions(t, vertices)
            delta = u @ u.mT - v @ v.mT
            total = total + _smooth_l1(delta).sum()
            if need_grad:
                d_u = 2 / count**3 * (delta.clamp(-1, 1) @ u)
                d_difference = (d_u - u * (u * d_u).sum(2, keepdim=True)) * inverse
                gradient += d_difference.sum(0)
                gradient[vertices] -= d_difference.sum(1)
    return _mean(total, count**3), gradient


def _standardized(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x − mean) / (std + 1e-7) of every row, and std (N, 1), unbiased; 0 for a single class."""
    centred = x - x.mean(1, keepdim=True)
    std = (centred.square().sum(1, keepdim=True) / max(x.shape[1] - 1, 1)).sqrt()
    return centred / (std + 1e-7), std


def _transformed(teacher: Tensor, gamma: float, weighted: bool) -> tuple[Tensor, Tensor]:
    """log (q^γ / Z), and the weight of every row: Z or 1."""
    powers = gamma * teacher.log_softmax(1)
    total = powers.logsumexp(1)
    return powers - total[:, None], total.exp() if weighted else torch.ones_like(total)


def _kd_kl(
    student: Tensor, teacher: Tensor, temperature: float, standardize: bool, grad_rows: Tensor | float
) -> tuple[Tensor, Tensor]:
    """The rows, and the gradient of Σ grad_rows · rows: grad_rows · T (p − q), through the standardisation if any."""
    x, y = accumulated(student, teacher)
    std = None
    if standardize:
        (x, std), (y, _) = _standardized(x), _standardized(y)
    log_p, log_q = (x / temperature).log_softmax(1), (y / temperature).log_softmax(1)
    gradient = temperature * grad_rows * (log_p.exp() - log_q.exp())
    if std is not None:
        along = (gradient * x).sum(1, keepdim=True) / max(x.shape[1] - 1, 1)
        gradient = (gradient - gradient.mean(1, keepdim=True)) / (std + 1e-7)
        gradient = gradient - torch.where(std == 0, 0, along / std) * x
    return temperature**2 * divergence(log_q, log_p), gradient.to(student.dtype)


def _distances(x: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distances (N, N), and 1 / their mean over the non-zero ones (0 where all are)."""
    # By differences: the Gram matrix would cancel for close rows.
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = (distance != 0).sum()
    return distance, torch.where(pairs > 0, pairs / distance.sum(), 0)


def _directions(x: Tensor, vertices: slice) -> tuple[Tensor, Tensor]:
    """Unit vectors (vertices, N, D) from each vertex to every row, and 1 / their lengths; 0 for a zero difference."""
    difference = x - x[vertices, None]
    length = difference.norm(dim=2, keepdim=True)
    inverse = torch.where(length == 0, 0, 1 / length)
    return difference * inverse, inverse


def _smooth_l1(delta: Tensor) -> Tensor:
    """Huber's function with β = 1: its derivative is delta clamped to [−1, 1]."""
    return torch.nn.functional.smooth_l1_loss(delta, torch.zeros_like(delta), reduction="none")


def _mean(values: Tensor, count: int) -> Tensor:
    return values.sum() / max(count, 1)


def _chunks(count: int, numbers_per_row: int) -> Iterator[slice]:
    """Slices that cover range(count), each of at most `_CHUNK_NUMBERS` numbers or of one row."""
    step = max(1, _CHUNK_NUMBERS // max(numbers_per_row, 1))
    return (slice(start, start + step) for start in range(0, count, step))
