"""Marks for torch.compile, as torch.compiler has them too, which loads the compiler to set them.

That took as long as the rest of importing icckd.
"""

from collections.abc import Callable
from typing import TypeVar

# What torch.optim is marked with: loads the compiler when the function is first called.
from torch._compile import _disable_dynamo as disable

__all__ = ["assume_constant_result", "disable"]

Function = TypeVar("Function", bound=Callable)


def assume_constant_result(function: Function) -> Function:
    """Compiled code calls `function` once, and takes what it returns for all that it ever will."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
