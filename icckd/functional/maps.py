"""What a student is taught by: its teacher's feature maps."""

from torch import Tensor

from icckd.backends.arithmetic import accumulated
from icckd.functional import checks
from icckd.functional.sides import full_precision, select, unit


def attention_transfer(student_map: Tensor, teacher_map: Tensor, *, backend: str = "auto") -> Tensor:
    """Activation-based attention transfer (Zagoruyko and Komodakis 2017, arXiv 1612.03928).

    With a_i the mean over the channels of the squared map, flattened to (H·W,) and divided by its Euclidean norm, for
    each network,

        loss = 1/(N·H·W) Σ_i ‖a_i of the student − a_i of the teacher‖²

    A map of zeros has a = 0, without gradient: this project's choice.

    Args:
        student_map: (N, C, H, W) float.
        teacher_map: (N, C', H, W) float, of any float dtype and number of channels; it gets no gradient.
        backend: "auto" or "reference": there are no kernels for it.

    Returns:
        A scalar, float32 (float64 where an input is); 0 for N = 0.

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape or device; maps differ in resolution.
        BackendUnavailable: The backend asked for cannot run here.
    """
    checks.float_maps("student_map", student_map)
    checks.float_maps("teacher_map", teacher_map, rows=student_map.shape[0])
    height, width = student_map.shape[2:]
    if teacher_map.shape[2:] != student_map.shape[2:]:
        other = " × ".join(map(str, teacher_map.shape[2:]))
        raise ValueError(f"teacher_map has resolution {other}; it should be {height} × {width}, as student_map has")
    checks.same_device("teacher_map", teacher_map, "student_map", student_map)
    select(backend, student_map, teacher_map, "attention_transfer")
    with full_precision(student_map):
        maps = accumulated(student_map, teacher_map.detach())
        s, t = (unit(_scaled(x).square().mean(1).flatten(1)) for x in maps)
        return (s - t).square().sum() / max(s.numel(), 1)


def _scaled(x: Tensor) -> Tensor:
    """Each image's map divided by its largest magnitude, which a is free of, so that no square overflows or is lost."""
    if x.numel() == 0:
        return x
    largest = x.detach().abs().amax((1, 2, 3), keepdim=True)
    return x / largest.masked_fill(largest == 0, 1)
