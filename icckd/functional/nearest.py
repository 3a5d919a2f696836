"""The nearest rows of the same class."""

import torch
from torch import Tensor

from icckd.functional.sides import full_precision, unit

# Similarities that are held at a time: 64 MiB of float32.
_AT_ONCE = 2**24


@torch.no_grad()
def nearest_of_class(
    queries: Tensor, query_labels: Tensor, rows: Tensor, labels: Tensor, own: Tensor, count: int
) -> Tensor:
    """For each query the `count` rows of its class with the largest cosine, nearest first, its own row excepted.

    Where a class has fewer, a query's own row stands in the places that are left. The work is O(N·M·D), the memory
    64 MiB, or N similarities where that is more: no (M, N) matrix is ever whole. Nothing has a gradient.

    Args:
        queries: (M, D) float.
        query_labels: (M,) integers.
        rows: (N, D) float.
        labels: (N,) integers.
        own: int64 (M,), the place of each query's own row.
        count: How many.

    Returns:
        int64 (M, count), places among `rows`.
    """
    with full_precision(rows):
        queries, rows = unit(queries.detach().float()), unit(rows.detach().float())
        step = max(1, _AT_ONCE // max(len(rows), 1))
        parts = zip(queries.split(step), query_labels.split(step), own.split(step), strict=True)
        found = [_nearest(query, of, place, rows, labels, count) for query, of, place in parts]
    return torch.cat(found)


def _nearest(queries: Tensor, of: Tensor, own: Tensor, rows: Tensor, labels: Tensor, count: int) -> Tensor:
    places = torch.arange(len(rows), device=rows.device)
    others = (of[:, None] == labels) & (own[:, None] != places)
    cosine = torch.where(others, queries @ rows.T, -torch.inf)
    value, nearest = cosine.topk(min(count, len(rows)), dim=1)
    nearest = torch.where(value > -torch.inf, nearest, own[:, None])
    return torch.cat([nearest, own[:, None].expand(-1, count - nearest.shape[1])], 1)
