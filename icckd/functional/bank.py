"""Products with the rows of a memory bank: what contrastive representation distillation compares."""

import torch
from torch import Tensor

from icckd import backends
from icckd.functional import checks
from icckd.ops import bank as ops
from icckd.ops.transforms import call


def bank_products(query: Tensor, bank: Tensor, index: Tensor, *, backend: str = "auto") -> Tensor:
    """Each query's products with the rows of a memory bank that its indices name.

        y_bk = query_b · bank[index_bk]

    The products of contrastive representation distillation (Tian et al. 2020, arXiv 1910.10699), there of B student
    embeddings with their positive's and K negatives' rows of the teacher's bank, and the other way round. The gradient
    flows to the query only, Σ_k g_bk bank[index_bk]; in reverse and in forward mode, as often as wanted.

    Neither pass writes B · K · D numbers: kernels read each row once per use, B · K · D · element size bytes, from the
    cache as far as that holds the bank, and write the result. On a CPU one product with the whole bank is faster where
    that has few rows (N ≤ 2 K; without kernels, N ≤ 12 K), and takes B · N numbers (`bench.crd` measures the ways).

    Args:
        query: (B, D) float.
        bank: (N, D) float, of any float dtype; it gets no gradient.
        index: (B, K) integers in [0, N); a row may be named more than once.
        backend: Who computes: "auto", "reference", "cpu" or "triton".

    Returns:
        (B, K), float32 (float64 where an input is).

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value. An index of no row is noticed on
            the CPU only: looking at a GPU's would synchronise. The kernels there make its product NaN, and its query's
            gradient too; "reference" ends in PyTorch's own error, a device-side assertion.
        BackendUnavailable: The backend asked for cannot run here.
    """
    checks.float_matrix("query", query)
    checks.float_matrix("bank", bank, columns=query.shape[1])
    checks.integer_matrix("index", index, query.shape[0])
    checks.same_device("bank", bank, "query", query)
    checks.same_device("index", index, "query", query)
    backend = backends.select(backend, query.device, torch.promote_types(query.dtype, bank.dtype), "bank")
    return call(ops.bank_products, query, bank.detach(), index.long(), backend)
