"""The definition of spectral contrast under weak supervision."""

import torch
from torch import Tensor

from icckd.reference.arithmetic import accumulated


def weak_spectral(
    view1: Tensor, view2: Tensor, posterior: Tensor, *, alpha: float = 1.0, beta: float = 12.0, kappa: float = 1.0
) -> Tensor:
    """Weakly supervised spectral contrastive loss: arXiv 2505.22028.

    With u and v the rows of the views, z those of both together, and q the posteriors,

        L1 = 1/N Σ_i u_i·v_i
        L2 = 1/(N(N−1)) Σ_{i≠j} (q_i·q_j)(x_i·y_j), the mean over (x, y) = (u, v), (u, u), (v, v)
        L3 = 1/(2N(2N−1)) Σ_{a≠b} (z_a·z_b)²
        loss = −2α L1 − 2β L2 + κ (α + β/C)² L3

    Args:
        view1: (N, D) float, rows as they are.
        view2: (N, D) float, the same images seen another way.
        posterior: (N, C) float, how probable each class is; never differentiated.
        alpha: α, the weight of a row's other view.
        beta: β, the weight of rows that may be of one class.
        kappa: κ, the weight of what spreads rows.

    Returns:
        A scalar, float32 (float64 where an input is); a mean over no pairs is 0.
    """
    dtype = torch.promote_types(accumulated(view1).dtype, torch.promote_types(view2.dtype, posterior.dtype))
    u, v, q = (x.to(dtype) for x in (view1, view2, posterior.detach()))
    count, classes = q.shape
    same_image = (u * v).sum() / max(count, 1)
    pairs = (u @ v.T + u @ u.T + v @ v.T) / 3
    same_class = _beside_diagonal((q @ q.T) * pairs) / max(count * (count - 1), 1)
    z = torch.cat([u, v])
    spread = _beside_diagonal((z @ z.T).square()) / max(2 * count * (2 * count - 1), 1)
    return -2 * alpha * same_image - 2 * beta * same_class + kappa * (alpha + beta / classes) ** 2 * spread


def _beside_diagonal(x: Tensor) -> Tensor:
    """The sum of a square matrix without its diagonal."""
    return x.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0).sum()
