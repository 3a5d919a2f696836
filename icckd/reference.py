"""The definition of every function of `icckd.functional`, in plain, dense PyTorch.

Nothing here is fast or small: the pairwise functions build N × N tensors, `rkd_angle` builds N × N × N. They exist to
be read and to be compared with. They check few arguments, run on any device and in any float dtype (float16 and
bfloat16 are computed in float32, float64 throughout in float64), and ordinary autograd differentiates them as often
as wanted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from icckd.ops.values import readable


def intra_class_contrastive(
    anchor: Tensor,
    positive: Tensor,
    labels: Tensor,
    *,
    gate: Tensor | None = None,
    memory: Tensor | None = None,
    memory_labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    reduction: str = "mean",
    num_classes: int | None = None,
) -> Tensor:
    """Contrast every anchor's positive with the other rows of the anchor's own class.

    With z, p, m the rows of anchor, positive and memory divided by their Euclidean norm (as they are without
    `normalize`; a zero row stays zero), κ = 1/temperature, and N_i the rows j ≠ i and the memory rows that bear i's
    label,

        ℓ_i = −log( exp(κ z_i·p_i) / ( exp(κ z_i·p_i) + Σ_{j∈N_i} exp(κ z_i·z_j) ) )
            = log( 1 + Σ_{j∈N_i} exp(κ (z_i·z_j − z_i·p_i)) ).

    Negatives from the anchor's own class and the gate are the paper's (arXiv 2509.22053, its intra-class loss); cosine
    similarity, temperature and the memory's part in N_i are this project's choice.

    Args:
        anchor: (N, D) float.
        positive: (N, D), another view of each anchor.
        labels: (N,) integers. A negative label takes the row out altogether.
        gate: (N,) weights g ≥ 0, or booleans (None: all 1). A row of weight 0 is no anchor but still a negative.
        memory: (M, D) further negatives, never differentiated.
        memory_labels: (M,) integers; a negative label marks an empty slot.
        temperature: τ > 0, a float or a 0-dim tensor.
        normalize: Compare directions (cosine similarity) rather than the rows as they are.
        reduction: "none": g_i ℓ_i (N,). "sum": Σ g_i ℓ_i. "mean": Σ g_i ℓ_i / Σ g_i, and 0 where Σ g_i = 0.
        num_classes: A bound that no label may reach.

    Returns:
        (N,) or a scalar, float32 (float64 for float64 inputs).
    """
    labels = labels.long()
    memory_labels = None if memory_labels is None else memory_labels.long()
    _check_class_bound(num_classes, labels, memory_labels)
    z, p = _accumulated(anchor), _accumulated(positive)
    labelled = labels >= 0
    candidates, candidate_labels = z, labels
    if memory is not None and memory_labels is not None:
        candidates = torch.cat([z, memory.detach().to(z)])
        candidate_labels = torch.cat([labels, memory_labels])
    z, p = _without(z, ~labelled), _without(p, ~labelled)
    candidates = _without(candidates, candidate_labels < 0)
    if normalize:
        z, p, candidates = _unit(z), _unit(p), _unit(candidates)

    rows, columns = (torch.arange(len(x), device=z.device) for x in (z, candidates))
    negative = (labels[:, None] == candidate_labels[None, :]) & labelled[:, None] & (rows[:, None] != columns)
    excess = (z @ candidates.T - (z * p).sum(dim=1, keepdim=True)) / temperature
    excess = excess.masked_fill(~negative, -torch.inf)
    loss = torch.cat([torch.zeros_like(excess[:, :1]), excess], dim=1).logsumexp(dim=1)

    weight = torch.ones_like(loss) if gate is None else gate.detach().to(loss)
    weight = weight.masked_fill(~labelled, 0)
    rows = (weight * loss).masked_fill(weight == 0, 0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    total = weight.sum()
    return rows.sum() / torch.where(total > 0, total, 1)


def classification_margin(
    logits: Tensor, labels: Tensor, *, space: str = "probability", ignore_index: int = -100
) -> Tensor:
    """The true class's value minus the largest other class's: how safely a row is classified.

    The margin that gates the paper's loss (arXiv 2509.22053); measuring it on probabilities is this project's default.

    Args:
        logits: (N, C) float.
        labels: (N,) integers in [0, C), or `ignore_index`.
        space: Values compared: "probability" (softmax, margins in [−1, 1]) or "logit".
        ignore_index: Rows of this label have margin −inf.

    Returns:
        (N,) float32, without gradient. With a single class: +1, or +inf in logit space.
    """
    values = _accumulated(logits.detach())
    if space == "probability":
        values = values.softmax(dim=1)
    labels = labels.long()
    ignored = labels == ignore_index
    own = labels.masked_fill(ignored, 0)[:, None]
    lowest = 0.0 if space == "probability" else -torch.inf
    margin = values.gather(1, own).squeeze(1) - values.scatter(1, own, lowest).amax(dim=1)
    return margin.masked_fill(ignored, -torch.inf).float()


def cross_entropy_with_margin(
    logits: Tensor,
    labels: Tensor,
    *,
    space: str = "probability",
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """`torch.nn.functional.cross_entropy`'s loss, and `classification_margin` of the same logits.

    Args:
        logits: (N, C) float.
        labels: (N,) integers in [0, C), or `ignore_index`.
        space: See `classification_margin`.
        label_smoothing: Share of the target spread evenly over all classes.
        ignore_index: Rows of this label have no loss.
        reduction: "none", "sum", or "mean" over the rows that are not ignored.

    Returns:
        The loss, (N,) or a scalar, float32 (float64 for float64 logits), and the margin (N,), float32.
    """
    loss = F.cross_entropy(
        _accumulated(logits),
        labels.long(),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    return loss, classification_margin(logits, labels, space=space, ignore_index=ignore_index)


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
    student, teacher = _accumulated(student_logits), _accumulated(teacher_logits.detach())
    if standardize:
        student, teacher = _standardized(student), _standardized(teacher)
    student_log = (student / temperature).log_softmax(dim=1)
    teacher_log = (teacher / temperature).log_softmax(dim=1)
    rows = temperature**2 * _divergence(teacher_log, student_log)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / max(len(rows), 1)


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
    relations = _relative_distances(_accumulated(student)), _relative_distances(_accumulated(teacher.detach()))
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
    relations = _angles(_accumulated(student)), _angles(_accumulated(teacher.detach()))
    return F.smooth_l1_loss(*relations, reduction="sum") / max(len(student) ** 3, 1)


def _accumulated(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _without(x: Tensor, unused: Tensor) -> Tensor:
    return x.masked_fill(unused[:, None], 0)


def _norm(x: Tensor) -> Tensor:
    """Euclidean norms over the last dimension, kept; unlike in autograd's own norm, 0 has no gradient of any order."""
    squared = x.square().sum(dim=-1, keepdim=True)
    zero = squared == 0
    return squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def _unit(x: Tensor) -> Tensor:
    norm = _norm(x)
    zero = norm == 0
    return (x / norm.masked_fill(zero, 1)).masked_fill(zero, 0)


def _standardized(logits: Tensor) -> Tensor:
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def _divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Σ q (log q − log p) of every row, where a class with q = 0 adds 0.

    Σ (p − q) = 0 is added, which leaves terms that are not negative: at high temperatures the others would cancel.
    """
    p, q = log_p.exp(), log_q.exp()
    excess = torch.where(q == 0, 1, log_q - log_p)
    close = torch.expm1(-excess.clamp(-1, 1)) + excess
    return torch.where(excess.abs() < 1, q * close, q * (excess - 1) + p).sum(dim=1)


def _relative_distances(x: Tensor) -> Tensor:
    distances = _norm(x[:, None, :] - x[None, :, :]).squeeze(-1)
    total, count = distances.sum(), (distances > 0).sum()
    return distances / torch.where(count > 0, total / count.clamp(min=1), 1)


def _angles(x: Tensor) -> Tensor:
    towards = _unit(x[None, :, :] - x[:, None, :])
    return towards @ towards.transpose(1, 2)


def _check_class_bound(num_classes: int | None, *label_sets: Tensor | None) -> None:
    for labels in label_sets:
        if num_classes is None or labels is None or not readable(labels):
            continue
        if bool((labels >= num_classes).any()):
            raise ValueError(f"num_classes is {num_classes}, but labels reach {int(labels.max())}")


def bank_products(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """query_b · bank[index_bk]: each query's products with the rows of a memory bank that its indices name.

    The products of contrastive representation distillation, Tian et al. 2020 (arXiv 1910.10699).

    Args:
        query: (B, D) float.
        bank: (N, D) float, never differentiated.
        index: (B, K) integers in [0, N).

    Returns:
        (B, K), float32 (float64 where an input is).
    """
    rows = _accumulated(bank.detach())[index.long()]
    return (_accumulated(query)[:, None, :] * rows).sum(dim=2)
