"""Spectral contrast under weak supervision, by sums over rows in place of sums over their pairs."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from icckd import backends
from icckd.backends.arithmetic import accumulation_dtype
from icckd.functional import checks
from icckd.functional.sides import full_precision

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks


def weak_spectral(
    view1: Tensor,
    view2: Tensor,
    posterior: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 12.0,
    kappa: float = 1.0,
    group: "ProcessGroup | Ranks | None" = None,
    backend: str = "auto",
) -> Tensor:
    """Weakly supervised spectral contrastive loss (arXiv 2505.22028), without a matrix of pairs.

    With u and v the rows of the views, z those of both together, and q the posteriors,

        L1 = 1/N Σ_i u_i·v_i
        L2 = 1/(N(N−1)) Σ_{i≠j} (q_i·q_j)(x_i·y_j), the mean over (x, y) = (u, v), (u, u), (v, v); 0 for N = 1
        L3 = 1/(2N(2N−1)) Σ_{a≠b} (z_a·z_b)²
        loss = −2α L1 − 2β L2 + κ (α + β/C)² L3

    Rows are taken as they are. The sums over pairs are this project's

        Σ_{i≠j} (q_i·q_j)(x_i·y_j) = ⟨QᵀX, QᵀY⟩ − Σ_i |q_i|² x_i·y_i
        Σ_{a≠b} (z_a·z_b)² = ‖ZᵀZ‖²_F − Σ_a |z_a|⁴

    in N·C·D + N·D² multiplications and O(N·(C + D) + C·D + D²) memory, forward and backward. What is subtracted is
    rounded in proportion to itself: L2 and L3 are exact to some 1e-7 of the mean of |q|²|x|² and of |z|⁴ over N (in
    float32), whatever is left of them. That is no less than the other terms' own rounding; relatively it is more where
    few rows, nearly orthogonal, leave little.

    Args:
        view1: (N, D) float.
        view2: (N, D) float, the same images seen another way, of any float dtype.
        posterior: (N, C) float, how probable each class is, of any float dtype, C ≥ 1; it gets no gradient.
        alpha: α, 0 or more, the weight of a row's other view.
        beta: β, 0 or more, the weight of rows that may be of one class.
        kappa: κ, 0 or more, the weight of what spreads rows; 1 in the paper, 3 in its code.
        group: Process group whose ranks all call this at the same time, each with its own rows, any number of them, or
            an `icckd.exchange.Ranks`, which knows how many without asking. Every rank returns the loss of all ranks'
            rows together; after averaging over the ranks the gradients are that loss's, too. Sums travel, 2·C·D + D²
            numbers whatever N, and not rows. Not within a transform of torch.func or in forward mode: RuntimeError.
        backend: "auto" or "reference": there are no kernels for it.

    Returns:
        A scalar, float32 (float64 where an input is); 0 for N = 0.

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value.
        BackendUnavailable: The backend asked for cannot run here.
    """
    _check(view1, view2, posterior)
    for name, value in (("alpha", alpha), ("beta", beta), ("kappa", kappa)):
        checks.non_negative_number(name, value)
    dtype = accumulation_dtype(view1, view2, posterior)
    backends.select(backend, view1.device, dtype, "weak_spectral")
    count, classes = posterior.shape
    posterior = posterior.detach()
    with full_precision(view1):
        sums = _sums_over_rows(view1.to(dtype), view2.to(dtype), posterior.to(dtype))
        if group is not None:
            # Not every build of PyTorch has torch.distributed.
            from icckd.exchange import line_up

            ranks = line_up(group, {"view1": view1, "view2": view2, "posterior": posterior})
            sums, count = _of_all(sums, ranks), sum(ranks.counts)
        u, v = sums.by_class
        same_image, alone, fourth_powers = sums.alone
        same_image = same_image / max(count, 1)
        same_class = ((u * v + u * u + v * v).sum() - alone) / (3 * max(count * (count - 1), 1))
        spread = (sums.second_moments.square().sum() - fourth_powers) / max(2 * count * (2 * count - 1), 1)
        # A single row has no other: what rounding leaves of its pairs with itself is none of the loss.
        same_class = same_class * (count > 1)
        return -2 * alpha * same_image - 2 * beta * same_class + kappa * (alpha + beta / classes) ** 2 * spread


class _Sums(NamedTuple):
    """What the loss needs of all rows.

    by_class: QᵀU and QᵀV (2, C, D).
    second_moments: ZᵀZ (D, D).
    alone: Σ u·v, Σ |q|² (u·v + |u|² + |v|²) and Σ |z|⁴ (3,).
    """

    by_class: Tensor
    second_moments: Tensor
    alone: Tensor


def _sums_over_rows(u: Tensor, v: Tensor, q: Tensor) -> _Sums:
    crossed, of_u, of_v = ((x * y).sum(1) for x, y in ((u, v), (u, u), (v, v)))
    with_itself = q.square().sum(1) * (crossed + of_u + of_v)
    fourth_powers = of_u.square() + of_v.square()
    alone = torch.stack([x.sum() for x in (crossed, with_itself, fourth_powers)])
    return _Sums(torch.stack([q.T @ u, q.T @ v]), u.T @ u + v.T @ v, alone)


def _of_all(sums: _Sums, ranks: "Ranks") -> _Sums:
    """The sums over all ranks' rows, by one exchange."""
    total = ranks.sum_with_gradient(torch.cat([x.flatten() for x in sums]))
    parts = total.split([x.numel() for x in sums])
    return _Sums(*(part.view_as(x) for part, x in zip(parts, sums, strict=True)))


def _check(view1: Tensor, view2: Tensor, posterior: Tensor) -> None:
    checks.float_matrix("view1", view1)
    checks.float_matrix("view2", view2, *view1.shape)
    checks.float_matrix("posterior", posterior, rows=view1.shape[0])
    if posterior.shape[1] == 0:
        raise ValueError(f"posterior has shape {tuple(posterior.shape)}; it should have at least one class")
    checks.same_device("view2", view2, "view1", view1)
    checks.same_device("posterior", posterior, "view1", view1)
