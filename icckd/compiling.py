"""Marks for torch.compile, as torch.compiler has them too, which loads the compiler to set them.

That took as long as the rest of importing icckd.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

# What torch.optim is marked with: loads the compiler when the function is first called.
from torch._compile import _disable_dynamo

__all__ = ["assume_constant_result", "disable"]

Function = TypeVar("Function", bound=Callable)


def assume_constant_result(function: Function) -> Function:
    """Compiled code calls `function` once, and takes what it returns for all that it ever will."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def disable(function: Function) -> Function:
    """Compiled code calls `function` as it is. Other code loads no compiler for it."""
    uncompiled = _disable_dynamo(function)

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        return (uncompiled if torch.compiler.is_compiling() else function)(*arguments, **named)

    return call  # type: ignore[return-value]
