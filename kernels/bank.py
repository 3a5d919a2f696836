"""Products of queries with rows of a memory bank that their indices name, and sums of such rows.

    products  y_bk = Σ_c query[b, c] bank[index[b, k], c]          (B, K)
    sums      s_bc = Σ_k weight[b, k] bank[index[b, k], c]         (B, D), the gradient of the queries

    kernel           a program owns                            and runs along
    multiply_rows    BLOCK_K indices of one query              BLOCK_D columns at a time
    add_rows         BLOCK_D columns of one query's share      its indices, BLOCK_K at a time, each in a lane of its
                     of the indices                            own; then a tree over the lanes

Bytes: B · K · D · element size of rows, each read once per use, from the second-level cache as far as that holds the
bank (26 MB of 50,000 rows of 128 float32; an H100's is 50 MB), and 12 · B · K of indices and products. Nothing of
B · K · D numbers is written. FLOP: 2 · B · K · D: no matrix unit, as every query has rows of its own. A query's indices
are shared out among programs where queries are too few to fill the device, and their sums added by one more launch, in
order: the same bits every time. An index of no row makes its product NaN, and its query's sums: looking for one on the
host would wait for the GPU.
Meant for D up to a few hundred and K of thousands. The tiles are the same on every architecture: what is under way at a
time, 8 KB of float32 a program and 8 programs a multiprocessor (rows of whole vectors take at most 64 registers a
thread), is more than any of them needs for its bandwidth. Measured times: owed.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from icckd.kernels import tables
from icckd.kernels.rows import vector_group, with_unit_columns
from icckd.kernels.specialization import ELEMENTS, Specialization, specialize

# Numbers of a tile, the most and the least of them that belong to one row, and programs of a multiprocessor.
_TILE, _WIDEST, _NARROWEST, _PROGRAMS, _WARPS = 2048, 128, 16, 8, 4
# The fewest indices that are worth a program of their own.
_LEAST_SHARE = 256
# Numbers like any other: 1 is no constant, a multiple of 16 no kernel of its own.
_INTEGERS = ["query_stride", "bank_groups", "rows", "count", "dim_groups", "tiles", "share", "shares"]


def bank_products(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """query_b · bank[index_bk] (B, K) float32."""
    products = torch.empty(index.shape, dtype=torch.float32, device=query.device)
    if products.numel():
        query, bank, index = with_unit_columns(query), with_unit_columns(bank), index.contiguous()
        group, tile = vector_group(bank), _tile(bank.shape[1])
        tiles = triton.cdiv(index.shape[1], tile["BLOCK_K"])
        multiply_rows[(len(index) * tiles,)](
            query, bank, index, products, query.stride(0), bank.stride(0) // group, len(bank), index.shape[1],
            bank.shape[1] // group, tiles, GROUP=group, **tile,
        )  # fmt: skip
    return products


def bank_sums(weight: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Σ_k weight_bk bank[index_bk] (B, D) float32."""
    (queries, count), dim = index.shape, bank.shape[1]
    tile = _tile(dim)
    tiles = max(1, triton.cdiv(dim, tile["BLOCK_D"]))
    share = _share(queries * tiles, count, tile["BLOCK_K"], index.device)
    shares = triton.cdiv(count, share)
    sums = torch.empty(queries, shares, dim, dtype=torch.float32, device=index.device)
    if sums.numel():
        weight, bank, index = weight.contiguous(), with_unit_columns(bank), index.contiguous()
        group = vector_group(bank)
        add_rows[(queries * shares * tiles,)](
            weight, bank, index, sums, bank.stride(0) // group, len(bank), count, dim // group, tiles, share, shares,
            GROUP=group, **tile,
        )  # fmt: skip
    return sums[:, 0] if shares == 1 else sums.sum(1)


def _tile(dim: int) -> tables.Options:
    block = min(_WIDEST, max(_NARROWEST, triton.next_power_of_2(dim)))
    return {"BLOCK_K": _TILE // block, "BLOCK_D": block, "num_warps": _WARPS, "num_stages": 1}


def _share(programs: int, count: int, block: int, device: torch.device) -> int:
    """How many indices of a query each program takes, so that so many programs and their copies fill the device."""
    copies = triton.cdiv(_PROGRAMS * tables.multiprocessors(device), max(1, programs))
    return triton.cdiv(max(_LEAST_SHARE, triton.cdiv(count, copies)), block) * block


@triton.jit
def _load_rows(bank, stride, wanted, mask, column, dim):
    """These columns of the rows named (BLOCK_K, BLOCK_D), in float32; 0 outside of the mask and behind their end."""
    at = bank + wanted[:, None] * stride + column[None, :]
    return tl.load(at, mask=mask[:, None] & (column < dim)[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=_INTEGERS)
def multiply_rows(
    query, bank, index, products, query_stride, bank_groups, rows, count, dim_groups, tiles,
    GROUP: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    stride, dim = bank_groups.to(tl.int64) * GROUP, dim_groups * GROUP
    b = (tl.program_id(0) // tiles).to(tl.int64)
    k = (tl.program_id(0) % tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
    wanted = tl.load(index + b * count + k, mask=k < count, other=0)
    named = (wanted >= 0) & (wanted < rows)
    total = tl.zeros((BLOCK_K,), tl.float32)
    for first in tl.range(0, dim, BLOCK_D):
        column = first + tl.arange(0, BLOCK_D)
        x = _load_rows(bank, stride, wanted, named & (k < count), column, dim)
        q = tl.load(query + b * query_stride + column, mask=column < dim, other=0.0).to(tl.float32)
        total += tl.sum(x * q[None, :], 1)
    tl.store(products + b * count + k, tl.where(named, total, float("nan")), mask=k < count)


@triton.jit(do_not_specialize=_INTEGERS)
def add_rows(
    weight, bank, index, sums, bank_groups, rows, count, dim_groups, tiles, share, shares,
    GROUP: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    stride, dim = bank_groups.to(tl.int64) * GROUP, dim_groups * GROUP
    part = (tl.program_id(0) // tiles).to(tl.int64)
    b = part // shares
    column = (tl.program_id(0) % tiles) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = (part % shares).to(tl.int32) * share
    end = tl.minimum(count, begin + share)
    total = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first in tl.range(begin, end, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        wanted = tl.load(index + b * count + k, mask=k < end, other=0)
        named = (wanted >= 0) & (wanted < rows)
        w = tl.where(named, tl.load(weight + b * count + k, mask=k < end, other=0.0), float("nan"))
        total += w[:, None] * _load_rows(bank, stride, wanted, named & (k < end), column, dim)
    tl.store(sums + part * dim + column, tl.sum(total, 0), mask=column < dim)


def specializations(architecture: str) -> Iterator[Specialization]:
    """Every width of a tile; the widest also for queries of another dtype than the bank's, and for odd rows."""
    widths = [_tile(dim) for dim in (16, 32, 64, _WIDEST)]
    for element, size in ELEMENTS.items():
        group = 16 // size
        for tile in widths:
            yield _form(multiply_rows, element, element, group, tile)
            yield _form(add_rows, element, element, group, tile)
        yield _form(multiply_rows, element, element, 1, widths[-1])
        yield _form(add_rows, element, element, 1, widths[-1])
        if element != "fp32":
            yield _form(multiply_rows, "fp32", element, group, widths[-1])
            yield _form(multiply_rows, element, "fp32", 4, widths[-1])


def _form(kernel: triton.JITFunction, query: str, bank: str, group: int, tile: tables.Options) -> Specialization:
    types = {
        "query": f"*{query}", "bank": f"*{bank}", "index": "*i64", "weight": "*fp32", "products": "*fp32",
        "sums": "*fp32",
    }  # fmt: skip
    description = f"query {query}, bank {bank}" + (", odd rows" if group == 1 else "")
    return specialize(kernel, types, {"GROUP": group}, tile, description=description)
