"""Scaling saved gradients in plain PyTorch: any device, any float dtype, no synchronisation."""

from torch import Tensor


def scale_gradients(factor: Tensor, *gradients: Tensor) -> None:
    """Multiply the gradients by `factor` (), in place."""
    # Looking at a factor on a GPU would wait for it.
    if factor.device.type == "cpu" and factor.item() == 1:
        return
    for gradient in gradients:
        gradient.mul_(factor)
