"""Signals in .csv files: a row per time step, the rows of one window after those of another."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icckd.data.signals.part import LARGEST_FILE, Part, check_size, out_of_range, wanted_of
from icckd.errors import UserError

_KEYS = ("window", "person", "activity")
_ROWS = 1 << 15
_LONGEST_NAME = 200


class _Rows(NamedTuple):
    """Consecutive rows: what they are of, strings (n,) each, their values, float64 (n, channels), and their lines."""

    window: np.ndarray
    person: np.ndarray
    activity: np.ndarray
    values: np.ndarray
    lines: np.ndarray


def read_csv(path: Path) -> Part:
    """The windows of a file with the columns window, person, activity, in any order, and one for each channel.

    Rows of one window follow one another, and a window begins where the column window changes; without that column the
    file is one window.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} takes {path.stat().st_size} bytes; it should take {LARGEST_FILE} at most")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(lines, [])]
            channels = _channels(header, path)
            parts = [*_rows(lines, header, channels, path)]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (at byte {error.start}); save it as that") from error
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num} is no line of a .csv file: {error}") from error
    if not parts:
        raise UserError(f"{path} holds no rows beneath its header; it should hold at least one window")
    return _part(_Rows(*(np.concatenate(columns) for columns in zip(*parts, strict=True))), channels, path)


def _channels(header: Sequence[str], path: Path) -> list[str]:
    channels = [name for name in header if name not in _KEYS]
    for name in ("person", "activity"):
        if name not in header:
            found = f"the columns {', '.join(header)[:100]}" if header else "no header"
            raise UserError(
                f"{path} has {found} and lacks {name}; there should be person, activity, one column per channel and, "
                "for several windows, window"
            )
    if not channels:
        raise UserError(f"{path} has no columns besides {', '.join(header)[:100]}; there should be one per channel")
    twice = [name for place, name in enumerate(header) if name in header[:place] or not name]
    if twice:
        raise UserError(f"{path} has the column {twice[0]!r} twice, or without a name; each should have one of its own")
    return channels


def _rows(lines: Iterator[list[str]], header: Sequence[str], channels: Sequence[str], path: Path) -> Iterator[_Rows]:
    """The rows beneath the header, some at a time; lines that are empty are left out."""
    numbered = ((number, row) for number, row in enumerate(lines, start=2) if row)
    while some := list(itertools.islice(numbered, _ROWS)):
        for number, row in some:
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {number} has {len(row)} fields; it should have {len(header)}, as the header"
                )
        columns = dict(zip(header, zip(*(row for _, row in some), strict=True), strict=True))
        columns.setdefault("window", (path.stem[:_LONGEST_NAME],) * len(some))
        numbers = np.array([number for number, _ in some])
        for name in _KEYS:
            _check_lengths(columns[name], name, numbers, path)
        values = [_numbers(columns[name], name, numbers, path) for name in channels]
        window, person, activity = (np.char.strip(np.array(columns[name])) for name in _KEYS)
        together = np.stack(values, axis=1) if values else np.empty((len(some), 0))
        yield _Rows(window, person, activity, together, numbers)


def _check_lengths(texts: Sequence[str], column: str, lines: np.ndarray, path: Path) -> None:
    """An array of names takes for each as much as for the longest."""
    lengths = [*map(len, texts)]
    if max(lengths) > _LONGEST_NAME:
        line = lines[lengths.index(max(lengths))]
        raise UserError(
            f"{path}, line {line}: {column} has {max(lengths)} letters; it should have {_LONGEST_NAME} at most"
        )


def _numbers(texts: Sequence[str], channel: str, lines: np.ndarray, path: Path) -> np.ndarray:
    """The values of a channel, float64; UserError where one is no finite number."""
    try:
        values = np.array([float(text) for text in texts])
    except ValueError:
        place, text = next((place, text) for place, text in enumerate(texts) if not _is_number(text))
        raise UserError(f"{path}, line {lines[place]}: {channel} is {text[:40]!r}; it should be a number") from None
    wrong = np.flatnonzero(out_of_range(values))
    if len(wrong):
        place = wrong[0]
        raise UserError(f"{path}, line {lines[place]}: {channel} is {texts[place][:40]}; {wanted_of(values[place])}")
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _part(rows: _Rows, channels: Sequence[str], path: Path) -> Part:
    """The windows that `rows` make. Raises UserError where they differ in length, or one is of two people."""
    begins = np.flatnonzero(np.append(True, rows.window[1:] != rows.window[:-1]))
    lengths = np.diff(np.append(begins, len(rows.window)))
    for name, column in (("person", rows.person), ("activity", rows.activity)):
        changes = np.flatnonzero(np.append(False, column[1:] != column[:-1]))
        within = np.setdiff1d(changes, begins)
        if len(within):
            place = within[0]
            raise UserError(
                f"{path}, line {rows.lines[place]}: {name} is {column[place]} within the window {rows.window[place]}, "
                f"which began as {column[place - 1]}; a window should be of one {name}"
            )
    check_size(path, len(begins), len(channels), int(lengths[0]))
    other = np.flatnonzero(lengths != lengths[0])
    if len(other):
        begin, length = begins[other[0]], lengths[other[0]]
        raise UserError(
            f"{path}, line {rows.lines[begin]}: the window {rows.window[begin]} has {length} rows; it should have "
            f"{lengths[0]}, as the first"
        )
    signals = rows.values.reshape(len(begins), lengths[0], len(channels)).transpose(0, 2, 1)
    return Part(path, signals.astype(np.float32, order="C"), rows.activity[begins], rows.person[begins], channels)
