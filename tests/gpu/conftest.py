"""Where the tests of this folder run: every GPU backend on a CUDA device, and Triton's in its interpreter.

The same functions serve both; what only a GPU has (streams, graphs, its memory) is plain execution in the interpreter.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import pytest
import torch

from icckd import backends

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """A backend, and the device of the tensors that it gets."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"

    @property
    def interpreted(self) -> bool:
        return self.device == "cpu"

    def choose(self, on_gpu: T, interpreted: T) -> T:
        """A size for a GPU, or one that an interpreter can stand."""
        return interpreted if self.interpreted else on_gpu

    def require(self, operator: str) -> None:
        """Skip the test where the backend has no such operator."""
        if not hasattr(backends.module(self.backend), operator):
            pytest.skip(f"backend {self.backend!r} has no {operator}")

    def without_synchronisation(self) -> AbstractContextManager:
        """Where waiting for the device raises RuntimeError."""
        return nullcontext() if self.interpreted else _SynchronisationRefused()

    def on_new_stream(self) -> AbstractContextManager:
        return nullcontext() if self.interpreted else torch.cuda.stream(torch.cuda.Stream())

    def synchronize(self) -> None:
        if not self.interpreted:
            torch.cuda.synchronize()

    def captured(self, step: Callable[[], tuple]) -> Callable[[], tuple]:
        """A replay of `step`, captured as a CUDA graph; its inputs are whatever the captured tensors hold by then."""
        if self.interpreted:
            return step
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(3):
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = step()

        def replay() -> tuple:
            graph.replay()
            return outputs

        return replay


class _SynchronisationRefused:
    def __enter__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_sync_debug_mode("default")


TARGETS = [
    pytest.param(Target("triton", "cuda"), marks=pytest.mark.gpu),
    pytest.param(Target("cuda", "cuda"), marks=pytest.mark.gpu),
    pytest.param(Target("triton", "cpu")),
]


@pytest.fixture(params=TARGETS, ids=str)
def target(request: pytest.FixtureRequest) -> Target:
    """Each backend of the GPU that can run here, with the device it runs on."""
    wanted: Target = request.param
    reason = backends.why_not(wanted.backend, torch.device(wanted.device), torch.float32)
    if reason:
        pytest.skip(f"backend {wanted.backend!r} on {wanted.device}: {reason}")
    return wanted
