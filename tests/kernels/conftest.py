"""Fixtures of the kernels' tests."""

from collections.abc import Callable, Iterator

import pytest
from torch import Tensor

from tests.kernels.guarded import guarded


@pytest.fixture
def guard() -> Iterator[Callable[[Tensor], Tensor]]:
    """Guard rows around all that the package allocates during the test, and around what is passed through this."""
    with guarded() as guard:
        yield guard
