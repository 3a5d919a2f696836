"""Products and roundings that mean the same on a GPU and in Triton's interpreter.

The interpreter truncates where it should round to bfloat16, and multiplies the bit patterns of such numbers.
"""

import torch
import triton
import triton.language as tl

from icckd.kernels import tables

INTERPRETED = tl.constexpr(tables.interpreted())


@triton.jit
def matmul(x, y, total, PRECISION: tl.constexpr):
    """total + x · y, by the matrix unit; the total is float32."""
    if INTERPRETED:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision=PRECISION)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """The nearest numbers of this dtype to x, float32."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        # Not a number must stay one.
        x = tl.where(x == x, nearest.to(tl.float32, bitcast=True), x)
    return x.to(dtype)


def product_precision() -> str:
    """How float32 is multiplied: in three TF32 products, to float32 accuracy, unless the user allows one."""
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "tf32x3" if torch.version.hip is None else "ieee"
