"""Products with rows of a memory bank in plain PyTorch: any device, float16 to float64."""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from icckd.ops.bank import products_dtype

# Numbers in one chunk of gathered rows: a chunk stays in cache, and memory in O(B·K + N·D).
_CHUNK_NUMBERS = 1 << 17
# A product with a row that is gathered costs as much as so many of a product with the whole bank (`bench.crd`).
_GATHERED = 12


def bank_products(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """query_b · bank[index_bk] (B, K), by whichever way is faster; float32 (float64 where an input is).

    The whole bank's B · N products are at most `_GATHERED` times as many as those wanted, and so is their memory.
    """
    if len(bank) <= _GATHERED * index.shape[1]:
        return whole_bank_products(query, bank, index)
    return gathered_products(query, bank, index)


def whole_bank_products(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """The same, by one product of all queries with the whole bank."""
    query, bank = _accumulable(query, bank)
    # The product is of float32 numbers made here: autocast would round them to half precision.
    with torch.autocast(query.device.type, enabled=False):
        return (query @ bank.T).gather(1, index)


def gathered_products(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """The same, by chunks of gathered rows."""
    products = query.new_empty(index.shape, dtype=products_dtype(query, bank))
    step = max(1, _CHUNK_NUMBERS // max(bank.shape[1], 1))
    with torch.autocast(query.device.type, enabled=False):
        for x, wanted, row in zip(query.to(products.dtype), index, products, strict=True):
            for start in range(0, len(row), step):
                part = slice(start, start + step)
                torch.mv(bank.index_select(0, wanted[part]).to(products.dtype), x, out=row[part])
    return products


def bank_sums(weight: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Σ_k weight_bk bank[index_bk] (B, D), in the weight's dtype: no atomic additions, so the same bits every time."""
    if index.numel() == 0 or bank.shape[1] == 0:
        return weight.new_zeros(len(weight), bank.shape[1])
    return embedding_bag(index, bank.to(weight.dtype), per_sample_weights=weight, mode="sum")


def _accumulable(query: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    dtype = products_dtype(query, bank)
    return query.to(dtype), bank.to(dtype)
