"""The operators of a memory bank: what they promise to the compiler and to autograd.

Both are linear, and each is the other's derivative, so that they can be differentiated as often as wanted. A bank gets
no gradient.
"""

from typing import Any

import torch
from torch import Tensor

from icckd import backends
from icckd.backends.arithmetic import accumulation_dtype
from icckd.ops.transforms import call, register, save
from icckd.ops.values import indices_below


@torch.library.custom_op("icckd::bank_products", mutates_args=())
def bank_products(query: Tensor, bank: Tensor, index: Tensor, backend: str) -> Tensor:
    """query_b · bank[index_bk]: (B, K), float32 (float64 where an input is)."""
    indices_below("index", index, len(bank))
    return backends.module(backend).bank_products(query, bank, index)


@torch.library.custom_op("icckd::bank_sums", mutates_args=())
def bank_sums(weight: Tensor, bank: Tensor, index: Tensor, backend: str) -> Tensor:
    """Σ_k weight_bk bank[index_bk]: (B, D) in the dtype of `weight`, float32 or float64."""
    indices_below("index", index, len(bank))
    return backends.module(backend).bank_sums(weight, bank, index)


@bank_products.register_fake
def _(query: Tensor, bank: Tensor, index: Tensor, backend: str) -> Tensor:
    return query.new_empty(index.shape, dtype=accumulation_dtype(query, bank))


@bank_sums.register_fake
def _(weight: Tensor, bank: Tensor, index: Tensor, backend: str) -> Tensor:
    return weight.new_empty(weight.shape[0], bank.shape[1])


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    given, bank, index, ctx.backend = inputs
    ctx.dtypes = given.dtype, output.dtype
    save(ctx, bank, index)


def _products_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    given, _ = ctx.dtypes
    return call(bank_sums, upstream, *ctx.saved_tensors, ctx.backend).to(given), None, None, None


def _products_along(ctx: Any, d_query: Tensor, *_: object) -> Tensor:
    return call(bank_products, d_query, *ctx.saved_tensors, ctx.backend)


def _sums_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return call(bank_products, upstream, *ctx.saved_tensors, ctx.backend), None, None, None


def _sums_along(ctx: Any, d_weight: Tensor, *_: object) -> Tensor:
    return call(bank_sums, d_weight, *ctx.saved_tensors, ctx.backend)


register(bank_products, _products_backward, _save, _products_along)
register(bank_sums, _sums_backward, _save, _sums_along)
