"""Signals in .npz files, zip archives of NumPy's arrays. Nothing is unpickled, and no header is believed."""

import math
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from icckd.data.signals.part import LARGEST_FILE, Part, check_size, out_of_range, wanted_of
from icckd.errors import UserError, reason

_ARRAYS = ("signals", "activity", "person")
_KINDS = {
    "signals": ("fiu", "numbers"),
    "activity": ("iuUS", "integers or strings"),
    "person": ("iuUS", "integers or strings"),
}
_ROWS = 1 << 12


def read_npz(path: Path) -> Part:
    """The windows in the arrays signals (n, channels, length), activity (n,) and person (n,) of a file.

    Or one window: signals (channels, length), and of activity and person one each. That of the signals may have another
    name where there is no further array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name: name for name in _ARRAYS}
            others = [name.removesuffix(".npy") for name in archive.namelist() if name[:-4] not in _ARRAYS]
            if "signals.npy" not in archive.namelist() and len(others) == 1:
                names["signals"] = others[0]
            signals, activity, person = (_array(archive, path, names[of], of) for of in _ARRAYS)
    except (UserError, PermissionError):
        raise
    except Exception as error:  # Of a file from anywhere, any part of the reader may fail in any way.
        raise UserError(f"{path} is no whole .npz file ({reason(error)}); write it with numpy.savez") from error
    if signals.ndim == 2 and activity.ndim == person.ndim == 0:
        signals, activity, person = signals[None], activity[None], person[None]
    if signals.ndim != 3:
        raise UserError(f"{path}: signals has shape {signals.shape}; it should be (windows, channels, length)")
    check_size(path, *signals.shape)
    for name, array in (("activity", activity), ("person", person)):
        if array.shape != signals.shape[:1]:
            raise UserError(f"{path}: {name} has shape {array.shape}; it should be ({len(signals)},), one per window")
    return Part(path, _finite(signals, path), _strings(activity, path, "activity"), _strings(person, path, "person"))


def _array(archive: zipfile.ZipFile, path: Path, name: str, of: str) -> np.ndarray:
    """The array `name` in the archive: read only once its header fits its content and its kind is right.

    `of` says what it should be: signals, activity or person.
    """
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise UserError(f"{path} lacks the array {name}; it should hold {', '.join(_ARRAYS)}") from None
    if member.file_size > LARGEST_FILE:
        raise UserError(f"{path}: {name} takes {member.file_size} bytes; it should take {LARGEST_FILE} at most")
    with archive.open(member) as stream:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(stream)]
        shape, _, dtype = read_header(stream)
    kinds, wanted = _KINDS[of]
    if dtype.kind not in kinds:
        found = "Python objects, which are not unpickled" if dtype.hasobject else f"{dtype}"
        raise UserError(f"{path}: {name} holds {found}; it should hold {wanted}")
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise UserError(f"{path}: {name} claims to be {shape}, more than its {member.file_size} bytes hold")
    with archive.open(member) as stream:
        return npy.read_array(stream, allow_pickle=False)


def _finite(signals: np.ndarray, path: Path) -> np.ndarray:
    """As float32; UserError where a value is not finite."""
    for start in range(0, len(signals), _ROWS):
        wrong = out_of_range(signals[start : start + _ROWS])
        if wrong.any():
            window, channel, sample = np.argwhere(wrong)[0]
            value = signals[start + window, channel, sample]
            raise UserError(
                f"{path}: window {start + window} is {value} in channel {channel} at sample {sample}; "
                f"{wanted_of(float(value))}"
            )
    return np.ascontiguousarray(signals, dtype=np.float32)


def _strings(names: np.ndarray, path: Path, what: str) -> np.ndarray:
    if names.dtype.kind == "S":
        try:
            return np.char.decode(names, "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: {what} holds bytes that are not UTF-8; it should hold text or integers"
            ) from error
    return names.astype(str)
