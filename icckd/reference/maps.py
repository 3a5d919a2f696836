"""The definition of what compares feature maps."""

from torch import Tensor

from icckd.reference.arithmetic import accumulated, unit


def attention_transfer(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Activation-based attention transfer: Zagoruyko and Komodakis 2017 (arXiv 1612.03928).

    With a_i the mean over the channels of the squared map, flattened to (H·W,) and divided by its Euclidean norm, for
    each network,

        loss = 1/(N·H·W) Σ_i ‖a_i of the student − a_i of the teacher‖²

    A map of zeros has a = 0, without gradient: this project's choice.

    Args:
        student_map: (N, C, H, W) float.
        teacher_map: (N, C', H, W) float, never differentiated.

    Returns:
        A scalar, float32 (float64 for float64 inputs); 0 for N = 0.
    """
    s, t = (unit(accumulated(x).square().mean(dim=1).flatten(1)) for x in (student_map, teacher_map.detach()))
    return (s - t).square().sum() / max(s.numel(), 1)
