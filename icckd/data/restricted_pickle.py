"""Reading a pickled dictionary of plain values and numpy arrays without unpickling it.

A pickle is a program for a stack machine, and Python's own machine lets it import and call anything. The one here
knows only the instructions that build plain values, and the few names that Python 2, Python 3 and numpy write into
the pickle of an array. Names are compared, never imported; nothing that a pickle names is called; arrays are made
here, of checked bytes.
"""

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class PickleRejected(ValueError):
    """A pickle is damaged, or holds something else than plain values and arrays of numbers."""


def read_pickled_dict(data: bytes | bytearray) -> dict[str, Any]:
    """The dictionary in a pickle of protocol 2 to 5, with byte-string keys as str and arrays as numpy arrays.

    Python 2's strings become str, decoded as Latin-1. Values are checked no further: they may be of any of these
    kinds. Raises PickleRejected.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(data):
            if instruction.name == "STOP":
                return _plain(machine.pop())
            if instruction.name not in _INSTRUCTIONS:
                raise PickleRejected(f"it has the instruction {instruction.name}, which a data set does not need")
            _INSTRUCTIONS[instruction.name](machine, argument)
    except PickleRejected:
        raise
    except (ValueError, IndexError, KeyError) as error:
        raise PickleRejected(f"it is damaged: {str(error)[:100]}") from error
    raise PickleRejected("it has no end")


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        return self.pop_last(len(self.stack) - self.marks.pop())

    def pop_last(self, count: int) -> list[Any]:
        if not 0 <= count <= len(self.stack):
            raise PickleRejected("it takes more from its stack than is there")
        start = len(self.stack) - count
        values = self.stack[start:]
        del self.stack[start:]
        return values


@dataclass
class _Array:
    """An array: its value is known once the pickle has given its state."""

    value: np.ndarray | None = None


@dataclass
class _ElementType:
    """An array's element type, such as u1, and its byte order, which the pickle may give later."""

    code: str
    order: str = "="


@dataclass(frozen=True)
class _Name:
    """What stands for a function or class that the pickle names; `build` makes what calling it would give."""

    build: Callable[..., Any] | None


def _plain(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PickleRejected("it does not hold a dictionary")
    keys = [key.decode("latin-1") if isinstance(key, bytes) else str(key) for key in value]
    values = [v.value if isinstance(v, _Array) else v for v in value.values()]
    return dict(zip(keys, values, strict=True))


def _append(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, list):
        raise PickleRejected("it appends to what is no list")
    target.extend(values)


def _set_items(machine: _Machine, values: list[Any]) -> None:
    target = machine.stack[-1]
    if not isinstance(target, dict) or len(values) % 2:
        raise PickleRejected("it sets items of what is no dictionary")
    keys = values[::2]
    # Hashing a deeply nested tuple would overflow the interpreter's own stack.
    if not all(isinstance(key, str | bytes | int) for key in keys):
        raise PickleRejected("it has a dictionary key that is neither string nor number")
    target.update(zip(keys, values[1::2], strict=True))


def _memoize(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _push_name(machine: _Machine, module: Any, name: Any) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickleRejected("it refers to something by what is no name")
    if (module, name) not in _NAMES:
        raise PickleRejected(f"it refers to {f'{module}.{name}'[:80]!a}, which a data set does not need")
    machine.push(_NAMES[module, name])


def _reduce(machine: _Machine) -> None:
    name, arguments = machine.pop_last(2)
    if not isinstance(name, _Name) or name.build is None or not isinstance(arguments, tuple):
        raise PickleRejected("it calls what is no known function")
    machine.push(name.build(*arguments[:4]))


def _build(machine: _Machine) -> None:
    state = machine.pop()
    target = machine.stack[-1]
    if not isinstance(state, tuple):
        raise PickleRejected("it gives a state that is no tuple")
    if isinstance(target, _ElementType) and len(state) >= 2 and state[1] in ("|", "<", ">", "="):
        target.order = state[1]
    elif isinstance(target, _Array) and len(state) == 5:
        _, shape, element, fortran, content = state
        target.value = _array(content, element, shape, "F" if fortran is True or fortran == 1 else "C")
    else:
        raise PickleRejected("it gives a state to what has none")


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _array_of_buffer(content: Any = None, element: Any = None, shape: Any = None, order: Any = "C") -> _Array:
    return _Array(_array(content, element, shape, "F" if order == "F" else "C"))


def _element_type(code: Any = None, *_: Any) -> _ElementType:
    code = code.decode("latin-1") if isinstance(code, bytes) else code
    if not isinstance(code, str) or not re.fullmatch(r"[|<>=]?([ui][1248]|f[248])", code):
        raise PickleRejected("it has an array of something else than numbers")
    return _ElementType(code.lstrip("|<>="), code[0] if code[0] in "<>" else "=")


def _encode(text: Any = None, encoding: Any = None, *_: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleRejected("it encodes something else than a Latin-1 string")
    return text.encode("latin-1")


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise PickleRejected("it calls bytes with arguments")
    return b""


def _array(content: Any, element: Any, shape: Any, order: Any) -> np.ndarray:
    """The numpy array that these parts of a pickle describe."""
    if isinstance(content, str):
        content = content.encode("latin-1")
    if not isinstance(element, _ElementType) or not isinstance(content, bytes | bytearray):
        raise PickleRejected("it has an array whose state is no array's")
    if not isinstance(shape, tuple) or len(shape) > 4 or not all(isinstance(n, int) and 0 <= n < 2**31 for n in shape):
        raise PickleRejected("it has an array whose shape is not up to 4 lengths")
    dtype = np.dtype(element.order.replace("|", "=") + element.code)
    if math.prod(shape) * dtype.itemsize != len(content):
        raise PickleRejected("it has an array whose content does not fill its shape")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


_NAMES = {
    ("numpy", "ndarray"): _Name(None),
    ("numpy", "dtype"): _Name(_element_type),
    ("_codecs", "encode"): _Name(_encode),
    ("__builtin__", "bytes"): _Name(_no_bytes),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Name(_empty_array) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Name(_array_of_buffer) for core in ("core", "_core")},
}

_VALUES = (
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
)  # fmt: skip

_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **{name: _Machine.push for name in _VALUES},
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "APPEND": lambda machine, _: _append(machine, machine.pop_last(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.pop_to_mark()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": lambda machine, _: _set_items(machine, machine.pop_last(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_to_mark()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop_last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop_last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop_last(3))),
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "MEMOIZE": lambda machine, _: _memoize(machine, len(machine.memo)),
    "BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.push(machine.memo[index]),
    "GLOBAL": lambda machine, names: _push_name(machine, *names.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: _push_name(machine, *machine.pop_last(2)),
    "REDUCE": lambda machine, _: _reduce(machine),
    "BUILD": lambda machine, _: _build(machine),
}
