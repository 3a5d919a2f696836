"""The label's class apart from the rest, in plain PyTorch: any device, float16 to float64."""

from typing import NamedTuple

import torch
from torch import Tensor

from icckd.backends.arithmetic import accumulated, divergence


class _Apart(NamedTuple):
    """Rows of logits apart from their label's class.

    log_share: log-softmax over the other classes (N, C), −∞ in the label's, and everywhere if there is no other.
    odds: The log-odds of the label (N,), the logarithm of its share over that of the others.
    """

    log_share: Tensor
    odds: Tensor


def rest_divergence_rows(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, odds_temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL(q̂ ‖ p̂), entropy of q̂, and log-odds of either network; float32 (float64 where an input is)."""
    x, y = accumulated(student, teacher)
    own = _own(labels, x)
    (log_p, odds), (log_q, teacher_odds) = _apart(x, own, temperature), _apart(y, own, temperature)
    if odds_temperature != temperature:
        odds, teacher_odds = (_apart(z, own, odds_temperature).odds for z in (x, y))
    q = log_q.exp()
    entropy = -(q * log_q.masked_fill(q == 0, 0)).sum(1)
    # Where the teacher leaves no class, its shares do not add up to 1.
    of_rest = divergence(log_q, log_p).masked_fill((q == 0).all(1), 0)
    wrong = ~own.any(1)
    rows = (z.masked_fill(wrong, torch.nan) for z in (of_rest, entropy, odds, teacher_odds))
    return tuple(rows)  # type: ignore[return-value]


def rest_divergence_rows_backward(
    grad_divergence: Tensor,
    grad_odds: Tensor,
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    odds_temperature: float,
) -> Tensor:
    """The gradient of Σ grad_divergence · divergence + grad_odds · odds, in the student's dtype."""
    x, y = accumulated(student, teacher)
    own = _own(labels, x)
    p, q = (_apart(z, own, temperature).log_share.exp() for z in (x, y))
    odds_p = p if odds_temperature == temperature else _apart(x, own, odds_temperature).log_share.exp()
    # Without a share that the teacher gives away, there is nothing to differ from.
    nothing = (q == 0).all(1, keepdim=True)
    gradient = (grad_divergence / temperature)[:, None] * (p - q).masked_fill(nothing, 0)
    gradient = gradient + (grad_odds / odds_temperature)[:, None] * (own.to(x.dtype) - odds_p)
    return gradient.masked_fill(~own.any(1, keepdim=True), torch.nan).to(student.dtype)


def _own(labels: Tensor, logits: Tensor) -> Tensor:
    """Where a row's class is its label's (N, C)."""
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device)


def _apart(x: Tensor, own: Tensor, temperature: float) -> _Apart:
    others = x.masked_fill(own, -torch.inf)
    top = others.amax(1, keepdim=True)
    nothing = top == -torch.inf
    top = top.masked_fill(nothing, 0)
    # Differences from the maximum first: large logits keep theirs.
    others = (others - top) / temperature
    total = others.logsumexp(1, keepdim=True)
    odds = torch.where(own, x - top, 0).sum(1, keepdim=True) / temperature - total
    return _Apart(others - total.masked_fill(nothing, 0), odds.squeeze(1))
