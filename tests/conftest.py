"""What tests share: the backends that run here, and reproducible random numbers."""

import os

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    # Read when the kernels are first imported: they then run on the CPU.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from icckd import backends

# Shared machines stall; examples are the same in every run.
hypothesis.settings.register_profile("icckd", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("icckd")


def pytest_configure() -> None:
    torch.set_num_threads(2)


@pytest.fixture(
    scope="session", params=[name for name in ("reference", "cpu") if backends.why_unavailable(name) is None]
)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every backend that computes on this machine's CPU."""
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers, the same for every run of a test."""
    return torch.Generator().manual_seed(0)
