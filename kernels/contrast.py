"""The pieces of the intra-class loss that its kernels share: exponents, a row's loss, a row's gradients.

Exponentials are powers of two, of the differences x_ij = κ log2(e) (z_i·z_j − a_i), in which large similarities cancel
before they are multiplied: P_ij = exp(κ z_i·z_j − lse_i) = 2^(x_ij − L_i) with L_i = ℓ_i log2(e).

Rows enter matrix products not as unit rows, which would have to be rounded, but scaled by the power of two below
1/norm, which is exact; what is left of 1/norm, its mantissa, multiplies the products. The losses of rows in half
precision are so as exact as float32 sums.
"""

import triton
import triton.language as tl

from icckd.kernels.layout import Layout
from icckd.kernels.precision import INTERPRETED, rounded

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Stands for −∞ where 0 times it should be 0, also once it is divided by κ: temperatures are below 1e17.
LOWEST = tl.constexpr(-1e20)
# float16 holds coefficients in this unit, if the largest is 1: with a mantissa and rounding they stay below 65504.
HALF_UNIT = tl.constexpr(2.0**-13)
# The largest coefficient that nothing is gained from: it would be 0 in float16, and its unit's inverse infinite.
_NEGLIGIBLE = tl.constexpr(1e-30)
# Numbers that `store_gradients` writes at a time.
_STORED = tl.constexpr(2048)


@triton.jit
def load_chunk(rows, stride, row, valid, first, dim, BLOCK_K: tl.constexpr):
    """Columns first … first + BLOCK_K of these rows; 0 where `valid` is false, and beyond `dim`."""
    column = first + tl.arange(0, BLOCK_K)
    at = rows + row.to(tl.int64)[:, None] * stride + column[None, :]
    return tl.load(at, mask=valid[:, None] & (column < dim)[None, :], other=0.0)


@triton.jit
def inverse_norm(squares, NORMALIZE: tl.constexpr):
    """What rows of these sums of squares are multiplied by: 0 for a zero row, 1 for rows taken as they are."""
    if NORMALIZE:
        return tl.where(squares > 0, 1.0 / tl.sqrt(tl.where(squares > 0, squares, 1.0)), 0.0)
    else:
        return tl.full(squares.shape, 1.0, tl.float32)


@triton.jit
def power_of_two(inverse):
    """The largest power of two that is no more than each of these numbers; 0 for 0."""
    return (inverse.to(tl.uint32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def mantissa(inverse):
    """What is left of these numbers when they are divided by their power of two: at least 1, less than 2."""
    return ((inverse.to(tl.uint32, bitcast=True) & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def finite(s):
    """The similarities; 0 where there is no pair, which they show by −∞."""
    return tl.where(s == float("-inf"), 0.0, s)


@triton.jit
def number(x):
    """A number that is given, or the one to which a pointer is."""
    if INTERPRETED:
        # There numbers are Python's own.
        return x if isinstance(x, float) else tl.load(x)
    else:
        return tl.load(x) if x.dtype.is_ptr() else x


@triton.jit
def row_factor(weight, scale, row, is_anchor):
    """weight · scale of these rows, 1 for what is None; 0 where `is_anchor` is false."""
    factor = is_anchor.to(tl.float32) if weight is None else tl.load(weight + row, mask=is_anchor, other=0.0)
    return factor if scale is None else factor * tl.load(scale)


@triton.jit
def half_unit(largest):
    """What coefficients of these largest magnitudes are divided by, so that float16 holds small ones beside them."""
    return tl.where(largest > _NEGLIGIBLE, largest * HALF_UNIT, 1.0)


@triton.jit
def add_exponents(highest, total, x):
    """The running maximum and Σ 2^(x − maximum) of rows, after one more tile; x = −∞ where there is no pair."""
    higher = tl.maximum(highest, tl.max(x, 1))
    # Finite also where there has been no pair: −∞ − (−∞) is not a number.
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    total = total * tl.exp2(highest - shift) + tl.sum(tl.exp2(x - shift[:, None]), 1)
    return higher, total


@triton.jit
def row_loss(negatives):
    """ℓ = log(1 + 2^negatives), from log2 Σ 2^(x − x of the positive) over the negatives."""
    difference = negatives * LN_2
    small = tl.exp(-tl.abs(difference))
    # log(1 + small), to the last bits also where 1 + small is rounded.
    sum_ = 1.0 + small
    log = tl.where(sum_ == 1.0, small, tl.log(sum_) * (small / (sum_ - 1.0)))
    return tl.maximum(difference, 0.0) + log


@triton.jit
def store_gradients(
    anchor, positive, anchor_stride, positive_stride, d_anchor, d_positive, row, valid, is_anchor, ignored,
    first, dim, pull, along, pairs, agreement, inverse, positive_inverse, kappa,
    NORMALIZE: tl.constexpr, NEED_ANCHOR: tl.constexpr, NEED_POSITIVE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write columns first … first + BLOCK_K of both gradients of these rows; 0 where `ignored`.

    pull: Σ_j C_ij z_j of these columns. along: z_i · Σ_j C_ij z_j. pairs: r_i. agreement: a_i.
    """
    if pull.shape[0] * BLOCK_K > _STORED:
        # By halves: registers that hold `pull` leave no room for as many numbers of both inputs.
        left, right = tl.split(tl.permute(tl.reshape(pull, (pull.shape[0], 2, BLOCK_K // 2)), (0, 2, 1)))
        store_gradients(
            anchor, positive, anchor_stride, positive_stride, d_anchor, d_positive, row, valid, is_anchor, ignored,
            first, dim, left, along, pairs, agreement, inverse, positive_inverse, kappa,
            NORMALIZE, NEED_ANCHOR, NEED_POSITIVE, BLOCK_K // 2,
        )  # fmt: skip
        store_gradients(
            anchor, positive, anchor_stride, positive_stride, d_anchor, d_positive, row, valid, is_anchor, ignored,
            first + BLOCK_K // 2, dim, right, along, pairs, agreement, inverse, positive_inverse, kappa,
            NORMALIZE, NEED_ANCHOR, NEED_POSITIVE, BLOCK_K // 2,
        )  # fmt: skip
        return
    column = first + tl.arange(0, BLOCK_K)
    z = load_chunk(anchor, anchor_stride, row, valid, first, dim, BLOCK_K).to(tl.float32) * inverse[:, None]
    p = load_chunk(positive, positive_stride, row, is_anchor, first, dim, BLOCK_K).to(tl.float32)
    p = p * positive_inverse[:, None]
    at = row.to(tl.int64)[:, None] * dim + column[None, :]
    mask = (valid | ignored)[:, None] & (column < dim)[None, :]
    if NEED_ANCHOR:
        if NORMALIZE:
            # Each less its part along z, which is all of it where D = 1.
            d_z = (pull - z * along[:, None]) - pairs[:, None] * (p - z * agreement[:, None])
            d_z = d_z * inverse[:, None]
        else:
            d_z = pull - pairs[:, None] * p
        d_z = tl.where(ignored[:, None], 0.0, d_z * kappa)
        tl.store(d_anchor + at, rounded(d_z, d_anchor.dtype.element_ty), mask=mask)
    if NEED_POSITIVE:
        d_p = z
        if NORMALIZE:
            d_p = (z - p * agreement[:, None]) * positive_inverse[:, None]
        d_p = tl.where(is_anchor[:, None], d_p * (-kappa * pairs)[:, None], 0.0)
        tl.store(d_positive + at, rounded(d_p, d_positive.dtype.element_ty), mask=mask)


# For `specializations`: the arguments that are multiples of 16 where rows are aligned, and the types of all that are no
# integers, by name.
ALIGNED = ("anchor_stride", "positive_stride", "memory_stride", "dim", "padded")
_ROWS = ("anchor", "positive", "memory", "z", "d_anchor", "d_positive")
_NUMBERS = (
    "weight", "scale", "upstream", "temperature", "losses", "lse", "lse_bits", "factor", "largest_factor", "inverse",
    "mantissas", "positive_inverse", "memory_inverse", "agreement", "negatives", "d_kappa", "pulls", "sums",
)  # fmt: skip


def argument_types(element: str) -> dict[str, str]:
    """The types of the arguments of the intra-class kernels for rows of "bf16", "fp16" or "fp32"."""
    types = {name: "*i32" for name in Layout._fields} | {name: "*fp32" for name in _NUMBERS}
    return types | {name: f"*{element}" for name in _ROWS}


def product_precision_of(architecture: str) -> str:
    """What `product_precision` says there unless the user has changed it."""
    return "ieee" if architecture.startswith("gfx") else "tf32x3"
