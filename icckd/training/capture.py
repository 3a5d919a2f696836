"""Whole training steps as one CUDA graph: the host launches a step at once, however many kernels it is made of."""

from collections.abc import Callable

import torch
from torch import Tensor

from icckd.data import Batch

# Steps before the first is captured: those in which kernels are compiled and libraries choose and allocate.
WARM_UP = 3


class CapturedSteps:
    """`step`, replayed as a CUDA graph.

    `step(batch)` must not wait for the device, and must read and write the same tensors each time. What it takes from
    Python stays as it was when it was captured, hence `renew`, to be called wherever that changes. Batches of another
    shape than the first one's are computed as they are.

    The loss that is returned is where the next step will put its own.
    """

    def __init__(self, step: Callable[[Batch], Tensor]):
        self._step = step
        self._warmed = 0
        self._batch: Batch | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._pool = torch.cuda.graph_pool_handle()
        self._loss: Tensor | None = None

    def renew(self) -> None:
        """Capture the next step anew."""
        self._graph = None

    def __call__(self, batch: Batch) -> Tensor:
        if self._batch is None:
            self._batch = _copy_of(batch)
        if _shapes(batch) != _shapes(self._batch):
            return self._step(batch)
        if self._warmed < WARM_UP:
            self._warmed += 1
            return self._warm_up(batch)
        for own, given in zip(_tensors(self._batch), _tensors(batch), strict=True):
            own.copy_(given)
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            # Other threads, such as those that pin batches in memory, go on as they like.
            with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
                self._loss = self._step(self._batch)
        self._graph.replay()
        assert self._loss is not None
        return self._loss

    def _warm_up(self, batch: Batch) -> Tensor:
        """A step like any other, but on a stream of its own, as before a capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self._step(batch)
        torch.cuda.current_stream().wait_stream(stream)
        return loss


def _tensors(batch: Batch) -> list[Tensor]:
    return [*batch.views, batch.labels, batch.indices]


def _shapes(batch: Batch) -> list[torch.Size]:
    return [tensor.shape for tensor in _tensors(batch)]


def _copy_of(batch: Batch) -> Batch:
    return Batch(tuple(view.clone() for view in batch.views), batch.labels.clone(), batch.indices.clone())
