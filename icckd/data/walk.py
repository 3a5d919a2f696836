"""The files in a folder and its subfolders, and saying which of them a data set leaves out."""

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from icckd.console import say
from icckd.errors import printable

_MOST_NAMED = 5


def files_beneath(folder: Path) -> list[Path]:
    """The files in `folder` and, at any depth, its subfolders, but for hidden ones, in alphabetical order.

    Links are followed, except to a folder that the link itself is in. Raises OSError as the file system does.
    """
    above = frozenset(_identity(p) for path in (folder.absolute(), folder.resolve()) for p in (path, *path.parents))
    return _beneath(folder, above)


def _beneath(folder: Path, above: frozenset[tuple[int, int]]) -> list[Path]:
    with os.scandir(folder) as entries:
        named = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    files: list[Path] = []
    for name, is_folder in named:
        path = folder / name
        if not is_folder:
            files.append(path)
        elif (identity := _identity(path)) not in above:
            files += _beneath(path, above | {identity})
    return files


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def report_left_out(title: str, folder: Path, known: Collection[Path]) -> None:
    """Says in one line how many files beneath `folder` are not among the `known` ones, by suffix; none: nothing."""
    used = frozenset(known)
    left_out = [path for path in files_beneath(folder) if path not in used]
    if not left_out:
        return
    suffixes = Counter(path.suffix.lower() or "without suffix" for path in left_out).most_common()
    counts = [f"{count} {printable(suffix)}" for suffix, count in suffixes[:_MOST_NAMED]]
    if others := sum(count for _, count in suffixes[_MOST_NAMED:]):
        counts.append(f"{others} of other suffixes")
    files = "1 file" if len(left_out) == 1 else f"{len(left_out)} files"
    say(f"{title}: {files} left out ({', '.join(counts)})")
