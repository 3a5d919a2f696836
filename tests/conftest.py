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


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(2)
    # NumPy's, of exponentials of −∞ and of lanes that are masked out.
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")


# Triton's interpreter takes minutes over these; tests/kernels and tests/gpu interpret the same kernels.
_LONG_IN_THE_INTERPRETER = ("functional/test_cross_entropy.py", "functional/test_distillation.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if parameters.get("backend") == "triton" and item.path.as_posix().endswith(_LONG_IN_THE_INTERPRETER):
            item.add_marker(pytest.mark.slow)


CPU_BACKENDS = [
    name
    for name in ("reference", "cpu", "triton")
    if backends.why_not(name, torch.device("cpu"), torch.float32) is None
]


@pytest.fixture(scope="session", params=CPU_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of every backend that computes on this machine's CPU."""
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    """Random numbers, the same for every run of a test."""
    return torch.Generator().manual_seed(0)
