"""What the definitions share: the precision they compute in, lengths and directions, divergences."""

import torch
from torch import Tensor


def accumulated(x: Tensor) -> Tensor:
    """x in float64 if it is, else in float32."""
    return x if x.dtype == torch.float64 else x.float()


def norm(x: Tensor) -> Tensor:
    """Euclidean norms over the last dimension, kept; unlike in autograd's own norm, 0 has no gradient of any order."""
    squared = x.square().sum(dim=-1, keepdim=True)
    zero = squared == 0
    return squared.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


def unit(x: Tensor) -> Tensor:
    """x divided by its norms over the last dimension; a zero vector stays zero, without gradient."""
    length = norm(x)
    zero = length == 0
    return (x / length.masked_fill(zero, 1)).masked_fill(zero, 0)


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Σ q (log q − log p) of every row, where a class with q = 0 adds 0.

    Σ (p − q) = 0 is added, which leaves terms that are not negative: at high temperatures the others would cancel.
    """
    p, q = log_p.exp(), log_q.exp()
    excess = torch.where(q == 0, 1, log_q - log_p)
    close = torch.expm1(-excess.clamp(-1, 1)) + excess
    return torch.where(excess.abs() < 1, q * close, q * (excess - 1) + p).sum(dim=1)
