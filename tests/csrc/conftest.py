"""What the tests of the CUDA kernels share: the emulator's architectures and timings."""

import pytest

from tests.csrc import emulator


@pytest.fixture(scope="session", params=emulator.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Every architecture that the emulator tells from others; skips where nothing can be compiled."""
    if (reason := emulator.why_unavailable()) is not None:
        pytest.skip(f"no emulator: {reason}")
    return request.param


@pytest.fixture(scope="session", params=emulator.TIMINGS)
def timing(request: pytest.FixtureRequest) -> str:
    """The two extremes of what a GPU leaves to chance (emulator.h)."""
    return request.param
