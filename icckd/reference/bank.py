"""Products with rows of a memory bank."""

from torch import Tensor

from icckd.reference.arithmetic import accumulated


def bank_products(query: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """query_b · bank[index_bk]: each query's products with the rows of a memory bank that its indices name.

    The products of contrastive representation distillation, Tian et al. 2020 (arXiv 1910.10699).

    Args:
        query: (B, D) float.
        bank: (N, D) float, never differentiated.
        index: (B, K) integers in [0, N).

    Returns:
        (B, K), float32 (float64 where an input is).
    """
    rows = accumulated(bank.detach())[index.long()]
    return (accumulated(query)[:, None, :] * rows).sum(dim=2)
