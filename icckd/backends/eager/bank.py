"""Products with rows of a memory bank in plain PyTorch: any device, float16 to float64.

Two ways. One product with the whole bank computes N products a query, of which K are wanted, at the speed of a matrix
library; rows that are gathered cost more each, but only those that are used. What is faster depends on N / K.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from icckd.backends.arithmetic import accumulation_dtype

# Numbers in one chunk of gathered rows: a chunk stays in cache, and memory in O(B·K + N·D).
_CHUNK_NUMBERS = 1 << 17
# Up to so many rows of a bank for each index of a query, on a CPU, one product with the whole bank is faster: than
# chunks of gathered rows, and than kernels that gather (`bench.crd`).
_ROWS_PER_CHUNKED, _ROWS_PER_FUSED = 12, 2


def bank_products(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """query_b · bank[index_bk] (B, K), by whichever way is faster; float32 (float64 where an input is).

    The whole bank's products are at most `_ROWS_PER_CHUNKED` times as many as those wanted, and so is their memory.
    """
    if len(bank) <= _ROWS_PER_CHUNKED * index.shape[1]:
        return whole_bank_products(query, bank, index)
    return gathered_products(query, bank, index)


def bank_sums(weight: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """Σ_k weight_bk bank[index_bk] (B, D), in the weight's dtype: the same bits every time.

    A GPU's scatter adds in any order, so that a product with the whole bank is for CPUs.
    """
    if weight.device.type == "cpu" and has_few_rows(bank, index):
        return whole_bank_sums(weight, bank, index)
    if index.numel() == 0 or bank.shape[1] == 0:
        return weight.new_zeros(len(weight), bank.shape[1])
    return embedding_bag(index, bank.to(weight.dtype), per_sample_weights=weight, mode="sum")


def has_few_rows(bank: Tensor, index: Tensor) -> bool:
    """Whether products with the whole bank are faster than a kernel that gathers."""
    return len(bank) <= _ROWS_PER_FUSED * index.shape[1]


def whole_bank_products(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """`bank_products` by one product of all queries with the whole bank (B, N), and a gather."""
    dtype = accumulation_dtype(query, bank)
    # The products are of float32 numbers made here: autocast would round them to half precision.
    with torch.autocast(query.device.type, enabled=False):
        return (query.to(dtype) @ bank.to(dtype).T).gather(1, index)


def whole_bank_sums(weight: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """`bank_sums` by a scatter of the weights (B, N), and one product with the whole bank."""
    with torch.autocast(weight.device.type, enabled=False):
        return weight.new_zeros(len(weight), len(bank)).scatter_add_(1, index, weight) @ bank.to(weight.dtype)


def gathered_products(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """`bank_products` by chunks of gathered rows."""
    products = query.new_empty(index.shape, dtype=accumulation_dtype(query, bank))
    step = max(1, _CHUNK_NUMBERS // max(bank.shape[1], 1))
    with torch.autocast(query.device.type, enabled=False):
        for x, wanted, row in zip(query.to(products.dtype), index, products, strict=True):
            for start in range(0, len(row), step):
                part = slice(start, start + step)
                torch.mv(bank.index_select(0, wanted[part]).to(products.dtype), x, out=row[part])
    return products
