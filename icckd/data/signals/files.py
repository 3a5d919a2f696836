"""All files of signals in a folder, together."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from icckd.data.signals.npz import read_npz
from icckd.data.signals.part import Part
from icckd.data.signals.table import read_csv
from icckd.data.signals.windows import Windows
from icckd.errors import UserError

_READERS = {".npz": read_npz, ".csv": read_csv}


def read_windows(folder: Path) -> Windows:
    """The windows in the .npz and .csv files of `folder`, in alphabetical order of the files.

    Names of activities and people are compared in Unicode's form NFC, and sorted; by number, where all are numbers.
    Raises UserError, naming the file, where one is of another kind, broken, or does not fit the others.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; data.root should be the folder that holds it")
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder} is empty; data.root should hold signals in {' or '.join(_READERS)} files")
    for path in paths:
        if path.suffix.lower() not in _READERS or not path.is_file():
            raise UserError(f"{path} is no {' or '.join(_READERS)} file; data.root should hold such alone")
    parts = [_READERS[path.suffix.lower()](path) for path in paths]
    for part in parts[1:]:
        _check_alike(part, parts)
    activity, activities = _indices([part.activity for part in parts], parts, "activity")
    person, people = _indices([part.person for part in parts], parts, "person")
    return Windows(np.concatenate([part.signals for part in parts]), activity, person, activities, people, str(folder))


def _check_alike(part: Part, parts: Sequence[Part]) -> None:
    first = parts[0]
    for what, found, expected in zip(
        ("channels", "samples"), part.signals.shape[1:], first.signals.shape[1:], strict=True
    ):
        if found != expected:
            raise UserError(
                f"{part.path} holds windows of {found} {what}; there should be {expected}, as in {first.path}"
            )
    named = next((other for other in parts if other.channels is not None), part)
    if part.channels is not None and part.channels != named.channels:
        assert named.channels is not None
        found, expected = (", ".join(names) for names in (part.channels, named.channels))
        raise UserError(f"{part.path} has the channels {found}; they should be {expected}, as in {named.path}")


def _indices(columns: Sequence[np.ndarray], parts: Sequence[Part], what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """For each window the index of its name among all names, int64 (N,), and these."""
    found = [np.unique(column, return_inverse=True) for column in columns]
    given = [
        [_name(str(name), part.path, what) for name in names] for (names, _), part in zip(found, parts, strict=True)
    ]
    every = {name for names in given for name in names}
    by_number = all(name.isascii() and name.isdecimal() for name in every)
    # As numbers without leading zeros: longer ones are larger, however long.
    digits = {name: name.lstrip("0") if by_number else "" for name in every}
    names = sorted(every, key=lambda name: (len(digits[name]), digits[name], name))
    index_of = {name: index for index, name in enumerate(names)}
    indices = [
        np.array([index_of[name] for name in own], dtype=np.int64)[inverse]
        for own, (_, inverse) in zip(given, found, strict=True)
    ]
    return np.concatenate(indices), tuple(names)


def _name(name: str, path: Path, what: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: {what} holds {name!r}, which is not Unicode text; give it another name") from error
    if not name.strip():
        raise UserError(f"{path}: {what} holds an empty name; each window should have one")
    return unicodedata.normalize("NFC", name.strip())
