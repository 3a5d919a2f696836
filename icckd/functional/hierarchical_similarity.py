"""Adaptive hierarchical similarity: contrast with margins that follow the similarities of the classes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from icckd import backends
from icckd.backends.arithmetic import accumulated
from icckd.functional import checks
from icckd.functional.sides import full_precision, unit
from icckd.ops import hierarchical as ops
from icckd.ops.transforms import call, wants_gradient

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks


def hierarchical_similarity(
    features: Tensor,
    labels: Tensor,
    *,
    augmented: Tensor | None = None,
    gamma: float = 0.5,
    rho: float = 2.0,
    positive_scale: float = 2.0,
    negative_scale: float = 50.0,
    group: "ProcessGroup | Ranks | None" = None,
    backend: str = "auto",
) -> Tensor:
    """Adaptive hierarchical similarity: pairs are pulled and pushed past margins that the classes' similarities set.

    With z the rows divided by their Euclidean norm (a zero row stays zero, without gradient), S_ij = z_i·z_j, S_ab the
    mean of S_ij over the pairs of a row of class a and another row of class b, where there is one, and

        Ŝ_ab = 0.2 (S_ab − min S) / (max S − min S)        (0 where max = min, to 64 roundings)

    over all S_ab of the batch, a = b among them, an anchor i of class a has the loss

        ℓ_i = 1/ς log(1 + Σ_j exp(−ς (S_ij − γ − Ŝ_aa)))      j: the other rows of class a
            + 1/σ log(1 + Σ_j exp( σ (S_ij − γ + Ŝ_ab)))      j: the rows of other classes b
            + 1/ρ log(1 + exp(−ρ (z_i·z'_i − M_a)))           if it is given an augmented row z'_i

    where M_a is the least S_ij of two rows of class a, 1 where there is one row. Ŝ and M get no gradient. A sum without
    terms adds nothing. The loss is that of arXiv 2111.00006, where similarity is a Poincaré ball's; cosine similarity,
    the mean over anchors, own and other classes in one minimum and maximum, and the defaults of ρ, ς and σ are this
    project's reading.

    The gradient flows to `features`, as anchors and as others' pairs, and to `augmented`, in reverse and in forward
    mode, once: a second derivative raises RuntimeError. The work is N²·D, the memory used O(N·D).

    Args:
        features: (N, D) float.
        labels: (N,) integers. A row with a negative label is ignored.
        augmented: (N, D) float, another view of each row, or None.
        gamma: γ, the margin between pairs of one class and of two.
        rho, positive_scale, negative_scale: ρ, ς and σ, above 0.
        group: Process group whose ranks all call this at the same time, each with its own rows, any number of them, or
            an `icckd.exchange.Ranks`, which knows how many without asking; all with augmented rows or none. Every
            rank's rows are pairs of every rank's anchors. The mean over the ranks of what they return is the loss of
            all ranks' rows together; after averaging over the ranks the gradients are that loss's, too. Not within a
            transform of torch.func or in forward mode: RuntimeError.
        backend: Who computes: "auto", "reference", "cpu" or "triton".

    Returns:
        The mean of ℓ_i over the anchors, a scalar, float32 (float64 where an input is); 0 without anchors.

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value.
        BackendUnavailable: The backend asked for cannot run here.
    """
    view = features if augmented is None else augmented
    _check(features, labels, view, gamma, rho, positive_scale, negative_scale)
    dtype = torch.promote_types(features.dtype, view.dtype)
    backend = backends.select(backend, features.device, dtype, "hierarchical")
    labels = labels.long()
    # Of anchors the first row and the number, all: which is in none of the graphs that record this.
    own, anchors, size = slice(None), (0, None), 1
    if group is not None:
        # Not every build of PyTorch has torch.distributed.
        from icckd.exchange import line_up

        ranks = line_up(group, {"features": features})
        features, labels = ranks.gather_with_gradient(features), ranks.gather(labels)
        own, size = ranks.own, ranks.size
        anchors = own.start, own.stop - own.start
    features, view = accumulated(features, view)
    used = labels >= 0
    with full_precision(features):
        rows = unit(features.masked_fill(~used[:, None], 0))
        classes, *of_classes = call(ops.hierarchical_classes, rows.detach(), labels, backend)
        need_grad = wants_gradient(rows) or torch.jit.is_tracing()
        settings = (*anchors, gamma, positive_scale, negative_scale, need_grad, backend)
        total, least, _ = call(ops.hierarchical_sum, rows, classes, *of_classes, *settings)
        if augmented is not None:
            if group is not None:
                least = ranks.gather(least)
            margin = _least_of_class(least, classes)[own]
            agreement = (rows[own] * unit(view.masked_fill(~used[own][:, None], 0))).sum(1)
            losses = torch.logaddexp(torch.zeros_like(agreement), rho * (margin - agreement)) / rho
            total = total + losses.masked_fill(~used[own], 0).sum()
        return total * size / used.sum().clamp(min=1)


def _least_of_class(least: Tensor, classes: Tensor) -> Tensor:
    """The least of these similarities in each row's class (N,); they are at most 1, but for rounding."""
    place = classes.clamp(min=0)
    values = least.masked_fill(classes < 0, 1)
    return torch.ones_like(least).scatter_reduce(0, place, values, "amin").gather(0, place)


def _check(
    features: Tensor,
    labels: Tensor,
    augmented: Tensor,
    gamma: float,
    rho: float,
    positive_scale: float,
    negative_scale: float,
) -> None:
    checks.float_matrix("features", features)
    checks.integer_vector("labels", labels, features.shape[0])
    checks.float_matrix("augmented", augmented, *features.shape)
    for name, tensor in (("labels", labels), ("augmented", augmented)):
        checks.same_device(name, tensor, "features", features)
    checks.finite_number("gamma", gamma)
    for name, value in (("rho", rho), ("positive_scale", positive_scale), ("negative_scale", negative_scale)):
        checks.positive_number(name, value)
