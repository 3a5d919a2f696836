"""What the operators of the intra-class loss hand to a backend, and a backend to its kernels.

This file uses no other: every backend can import it. `kernels/` stands below the backends, and names it in types only.
"""

from typing import NamedTuple

from torch import Tensor


class IntraClassProblem(NamedTuple):
    """The arguments that all operators of the intra-class loss share, in their order.

    anchor, positive: Rows and their views (N, D): float16, bfloat16, float32 (float64), any strides.
    labels: int64 (N,); a row is ignored where its label is negative, or not below `num_classes`.
    weight: Of each row as an anchor, ≥ 0, (N,): float32 (float64 for float64 inputs); 1 where None.
    memory: Further negatives (M, D), or None; without gradient.
    memory_labels: int64 (M,), negative for empty slots; None without a memory.
    temperature: 0-dim float32 (float64), on the rows' device, or on the CPU where the host knows it.
    mean: Losses are divided by the sum of the labelled rows' weights; all is 0 where that is 0.
    normalize: Rows are divided by their norms first.
    num_classes: No label that counts is as large; None where that is not known.
    """

    anchor: Tensor
    positive: Tensor
    labels: Tensor
    weight: Tensor | None
    memory: Tensor | None
    memory_labels: Tensor | None
    temperature: Tensor
    mean: bool
    normalize: bool
    num_classes: int | None


class Needs(NamedTuple):
    """Of which of the problem's tensors the gradient is needed; an empty tensor (0,) stands for the others'."""

    anchor: bool
    positive: bool
    temperature: bool
