"""What the distillation losses share: the precision they are computed in, and a divergence that does not cancel."""

import torch
from torch import Tensor


def accumulable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or float64 where one is."""
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.to(dtype)


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Σ q (log q − log p) of every row. Σ (p − q) = 0 is added: no term is negative then, and none cancels another."""
    p, q = log_p.exp(), log_q.exp()
    # Where the teacher rules a class out the student may too: −inf − −inf.
    excess = torch.where(q == 0, 1, log_q - log_p)
    close = torch.expm1(-excess.clamp(-1, 1)) + excess
    return torch.where(excess.abs() < 1, q * close, q * (excess - 1) + p).sum(1)
