"""Rows in a file that is whole at every moment: written anew, and put in place at once, after every addition.

Several processes may add to one file.
"""

import fcntl
import json
from pathlib import Path

from bench.measure import Row
from icckd.files import write_json

LOCK = ".lock"


def read(path: Path) -> list[Row]:
    """The rows of a file, none where it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def add(path: Path, *rows: Row) -> None:
    """Write the rows of a file with these behind them."""
    with path.with_name(LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_json(path, [*read(path), *rows])
