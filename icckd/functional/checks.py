"""Argument checks of the public functions: each names the argument, what it was and what it should be.

Checks of shapes, dtypes and devices cost nothing and run always. Values of tensors are checked by the operators
(`icckd.ops.values`), but that of a temperature, which arithmetic in another dtype may change.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from icckd.ops.values import readable

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# All of whose values torch.int64 holds: labels become that before they are compared with anything.
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint32, torch.uint16, torch.uint8)


def is_tensor(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it should be a torch.Tensor")


def float_matrix(name: str, x: Tensor, rows: int | None = None, columns: int | None = None) -> None:
    """`x` should be a two-dimensional float tensor, with so many rows and columns where they are given."""
    _float_tensor(name, x)
    if x.dim() != 2 or (rows is not None and x.shape[0] != rows) or (columns is not None and x.shape[1] != columns):
        wanted = f"({'N' if rows is None else rows}, {'D' if columns is None else columns})"
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it should be {wanted}")


def float_rows(name: str, x: Tensor, rows: int | None = None) -> None:
    """`x` should be a float tensor of so many rows, if given, of any shape with at least one number each."""
    _float_tensor(name, x)
    if x.dim() < 2 or (rows is not None and x.shape[0] != rows) or 0 in x.shape[1:]:
        wanted = f"({'N' if rows is None else rows}, …)"
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it should be {wanted} with at least one number in a row")


def float_maps(name: str, x: Tensor, rows: int | None = None) -> None:
    """`x` should be a float tensor (N, C, H, W), with so many rows if given, and at least one number each."""
    _float_tensor(name, x)
    if x.dim() != 4 or (rows is not None and x.shape[0] != rows) or 0 in x.shape[1:]:
        wanted = f"({'N' if rows is None else rows}, C, H, W)"
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it should be {wanted} with at least one number in a map")


def integer_vector(name: str, x: Tensor, size: int) -> None:
    """`x` should be a one-dimensional integer tensor of `size` elements."""
    _integer_tensor(name, x)
    vector(name, x, size)


def integer_matrix(name: str, x: Tensor, rows: int) -> None:
    """`x` should be a two-dimensional integer tensor with so many rows."""
    _integer_tensor(name, x)
    if x.dim() != 2 or x.shape[0] != rows:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it should be ({rows}, K)")


def vector(name: str, x: Tensor, size: int) -> None:
    """`x` should be one-dimensional, of `size` elements."""
    is_tensor(name, x)
    if x.dim() != 1 or x.shape[0] != size:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it should be ({size},)")


def scalar(name: str, x: Tensor) -> None:
    """`x` should be 0-dim."""
    if x.dim() != 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it should be a number or a 0-dim tensor")


def same_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device}; it should be on {other.device}, as {other_name} is")


def same_dtype(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    if x.dtype != other.dtype:
        raise TypeError(f"{name} has dtype {x.dtype}; it should be {other.dtype}, as {other_name} is")


def one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it should be {_choices([repr(choice) for choice in choices])}")


def is_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} is {value!r}; it should be a number")


def finite_number(name: str, value: float) -> None:
    is_number(name, value)
    if not float("-inf") < value < float("inf"):
        raise ValueError(f"{name} is {value}; it should be a finite number")


def positive_number(name: str, value: float) -> None:
    """`value` should be a finite number above 0."""
    is_number(name, value)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; it should be a finite number above 0")


def non_negative_number(name: str, value: float) -> None:
    """`value` should be a finite number of 0 or more."""
    is_number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value}; it should be a finite number of 0 or more")


def positive_integer(name: str, value: int) -> None:
    # While torch.jit traces, sizes are tensors.
    integers = (int, torch.SymInt, Tensor) if torch.jit.is_tracing() else (int, torch.SymInt)
    if isinstance(value, bool) or not isinstance(value, integers):
        raise TypeError(f"{name} is {value!r}; it should be an integer")
    if value < 1:
        raise ValueError(f"{name} is {value}; it should be 1 or more")


def non_negative_integer(name: str, value: int) -> None:
    """`value` should be an integer of 0 or more."""
    if type(value) is int and value == 0:
        return
    if isinstance(value, int) and value < 0:
        raise ValueError(f"{name} is {value}; it should be 0 or more")
    positive_integer(name, value)


def number_within(name: str, value: float, lowest: float, highest: float) -> None:
    """`value` should be a number in [lowest, highest]."""
    is_number(name, value)
    if not lowest <= value <= highest:
        raise ValueError(f"{name} is {value}; it should be in [{lowest}, {highest}]")


def weights(name: str, x: Tensor, size: int) -> None:
    """`x` should hold `size` booleans or float numbers."""
    vector(name, x, size)
    if x.dtype == torch.bool:
        return
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} has dtype {x.dtype}; it should be torch.bool or a float type")


def boolean_vector(name: str, x: Tensor, size: int) -> None:
    """`x` should hold `size` booleans."""
    vector(name, x, size)
    if x.dtype != torch.bool:
        raise TypeError(f"{name} has dtype {x.dtype}; it should be torch.bool")


def temperature(name: str, value: float | Tensor, device: torch.device | None = None) -> None:
    """`value` should be a number above 0, or a 0-dim float tensor (on `device`) that holds one."""
    if not isinstance(value, Tensor):
        positive_number(name, value)
        return
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} has dtype {value.dtype}; it should be a float type")
    if value.dim() != 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; it should be a float or a 0-dim tensor")
    if device is not None and value.device != device:
        raise ValueError(f"{name} is on {value.device}; it should be on {device}, as the other tensors are")
    if readable(value):
        positive_number(name, value.item())


def _float_tensor(name: str, x: Tensor) -> None:
    is_tensor(name, x)
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name} has dtype {x.dtype}; it should be {_choices(FLOAT_DTYPES)}")


def _integer_tensor(name: str, x: Tensor) -> None:
    is_tensor(name, x)
    if x.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{name} has dtype {x.dtype}; it should be an integer type: torch.int64 or a narrower one")


def _choices(options: Sequence[object]) -> str:
    *most, last = map(str, options)
    return f"{', '.join(most)} or {last}" if most else last
