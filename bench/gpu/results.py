"""Rows in files that are whole at every moment: written anew beside their folder, and put in place at once.

Several processes may add to one file. A process that dies in the middle leaves nothing in the folder but whole files.
"""

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from icckd.bench.measure import Row
from icckd.files import json_line, write_json

_ROOT = Path(__file__).parents[2]
# Rows alike in these say the same thing: the later one holds.
_IDENTITY = ("stage", "test", "case", "contender", "mode", "quantity", "dtype", "size")


def portable(log: str) -> str:
    """What a process printed, without the folders that the tree and Python are in: records are for other machines."""
    for folder in (sys.prefix, sys.base_prefix, _ROOT):
        log = log.replace(f"{folder}/", "")
    return log


def read(path: Path) -> list[Row]:
    """The rows of a file, none where it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def add(path: Path, *rows: Row) -> None:
    """Write the rows of a file with these behind them."""
    with _locked(path.parent):
        _write_rows(path, [*read(path), *rows])


def put(path: Path, *rows: Row) -> None:
    """The same, where new rows take the place of older ones that they repeat."""
    with _locked(path.parent):
        by_identity = {tuple(row.get(key) for key in _IDENTITY): row for row in [*read(path), *rows]}
        _write_rows(path, list(by_identity.values()))


def write(path: Path, value: Any) -> None:
    """`path` with `value` as indented JSON."""
    write_whole(path, lambda temporary: write_json(temporary, value))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Make `path` by calling `write(temporary)`: the folder holds the old file or the new one, and never another."""
    temporary = _beside(path.parent) / f"{path.stem}.{os.getpid()}{path.suffix}"
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove what `write_whole` needs beside a folder, once everything has been written."""
    beside = _beside(folder)
    if beside != folder:
        for left in beside.iterdir():
            left.unlink()
        beside.rmdir()


def _write_rows(path: Path, rows: list[Row]) -> None:
    lines = ",\n".join(json_line(row) for row in rows)
    write_whole(path, lambda temporary: temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8"))


def _beside(folder: Path) -> Path:
    """A folder of the same file system for unfinished files; `folder` itself where there can be none."""
    parent = folder.resolve().parent
    if os.stat(parent).st_dev != os.stat(folder).st_dev or not os.access(parent, os.W_OK):
        return folder
    beside = parent / f".{folder.resolve().name}.unfinished"
    beside.mkdir(exist_ok=True)
    return beside


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among the processes that add to files of this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
