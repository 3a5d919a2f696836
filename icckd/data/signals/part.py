"""What one file of signals holds, checked; every reader returns it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icckd.errors import UserError

LARGEST_FILE = 1 << 32  # Bytes; of arrays, as they are unpacked.
_LARGEST_CHANNELS, _LENGTHS = 256, (8, 1 << 16)
_LARGEST_VALUE = 1e18  # Beyond it float32 does not hold the square of a signal.


class Part(NamedTuple):
    """The n windows of a file, in order.

    signals: float32 (n, channels, length), finite.
    activity: Of each window, strings (n,).
    person: Likewise.
    channels: The channels' names, where the file gives them.
    """

    path: Path
    signals: np.ndarray
    activity: np.ndarray
    person: np.ndarray
    channels: Sequence[str] | None = None


def check_size(path: Path, windows: int, channels: int, length: int) -> None:
    """Raise UserError where the file at `path` holds no windows, or windows of a size that is not sensible."""
    shortest, longest = _LENGTHS
    if windows == 0:
        raise UserError(f"{path} holds no windows; it should hold at least one")
    if not 1 <= channels <= _LARGEST_CHANNELS:
        raise UserError(f"{path} holds windows of {channels} channels; there should be 1 to {_LARGEST_CHANNELS}")
    if not shortest <= length <= longest:
        raise UserError(f"{path} holds windows of {length} samples; they should be {shortest} to {longest} long")


def out_of_range(values: np.ndarray) -> np.ndarray:
    """Which values are no signal's: nan, infinite, or too large to compute with."""
    with np.errstate(over="ignore"):
        in_float64 = values.astype(np.float64)  # float16 does not hold the limit, nor int64 the size of its lowest.
    return ~(np.abs(in_float64) <= _LARGEST_VALUE)


def wanted_of(value: float) -> str:
    """What a value that is out of range should be."""
    return (
        f"it should be finite and at most {_LARGEST_VALUE:g} in size" if np.isfinite(value) else "it should be finite"
    )
