"""Attacks: images moved within a small l∞ ball so that a loss rises, by the sign of its gradient.

Images come normalised, (pixel − mean) / std of each channel; sizes of moves are in units of pixels in [0, 1], before
that. What answers is only a function here: the caller sees to it that a network is asked in evaluation mode.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def fgsm(
    loss: Callable[[Tensor], Tensor], images: Tensor, *, epsilon: float, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """The fast gradient sign method: x + ε · sign(∂loss/∂x), clipped to pixels in [0, 1].

    A step of `pgd` that goes to the edge of the ball, from the images themselves. (Goodfellow et al. 2015, arXiv
    1412.6572.)
    """
    start = torch.zeros_like(images)
    return pgd(loss, images, start, epsilon=epsilon, step_size=epsilon, steps=1, mean=mean, std=std)


def pgd(
    loss: Callable[[Tensor], Tensor],
    images: Tensor,
    start: Tensor,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Projected gradient ascent: x' ← Π(x' + step_size · sign(∂loss/∂x')), `steps` times, from Π(x + start).

    Π clips each pixel to within ε of x and to [0, 1]. A pixel whose gradient is 0 or not a number stays where it is.
    (Madry et al. 2018, arXiv 1706.06083.)

    Args:
        loss: Normalised images (B, C, H, W) → the loss, 0-dim, which is to be a sum over images. Only its gradient with
            respect to the images is computed: parameters get none.
        images: x, normalised, float (B, C, H, W).
        start: Where to begin, less x, in units of pixels, of the images' shape: uniform in [−ε, ε] is usual.
        epsilon: ε, the most that a pixel moves, in units of pixels in [0, 1].
        step_size: How far a pixel moves in a step, likewise.
        steps: How many there are.
        mean: Of each channel, what pixels came less.
        std: Of each channel, what they were then divided by.

    Returns:
        x', normalised, without gradient.

    Raises:
        ValueError: `mean` or `std` is not of the images' channels, `start` not of their shape.
    """
    if start.shape != images.shape:
        raise ValueError(f"start has shape {tuple(start.shape)}; it should be {tuple(images.shape)}, the images'")
    images = images.detach()
    center, unit = _by_channel("mean", mean, images), 1 / _by_channel("std", std, images)
    lowest = torch.maximum(images - epsilon * unit, -center * unit)
    highest = torch.minimum(images + epsilon * unit, (1 - center) * unit)
    moved = (images + start * unit).clamp(lowest, highest)
    for _ in range(steps):
        sign = gradient(loss, moved).sign().nan_to_num(0)
        moved = (moved + step_size * unit * sign).clamp(lowest, highest)
    return moved


def gradient(loss: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """∂loss/∂images, of the images' shape; 0 where the loss does not depend on them."""
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        value = loss(images)
        if not value.requires_grad:
            return torch.zeros_like(images)
        (found,) = torch.autograd.grad(value, images, materialize_grads=True)
    return found


def _by_channel(name: str, values: Sequence[float], images: Tensor) -> Tensor:
    if len(values) != images.shape[1]:
        raise ValueError(f"{name} has {len(values)} values; it should have {images.shape[1]}, one per channel")
    return torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)
