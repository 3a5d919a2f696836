"""What the operators and all that computes them share: the precision of results, a divergence that does not cancel.

This file uses no other: every layer can import it.
"""

import torch
from torch import Tensor


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """What sums over these are computed and returned in: float64 where one of them is, else float32."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def accumulated(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both sides in their accumulation dtype."""
    dtype = accumulation_dtype(student, teacher)
    return student.to(dtype), teacher.to(dtype)


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Σ q (log q − log p) of every row. Σ (p − q) = 0 is added: no term is negative then, and none cancels another."""
    p, q = log_p.exp(), log_q.exp()
    # Where the teacher rules a class out the student may too: −inf − −inf.
    excess = torch.where(q == 0, 1, log_q - log_p)
    close = torch.expm1(-excess.clamp(-1, 1)) + excess
    return torch.where(excess.abs() < 1, q * close, q * (excess - 1) + p).sum(1)
