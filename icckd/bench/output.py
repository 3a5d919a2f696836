"""Rows in files, whole or not at all."""

import csv
from pathlib import Path

from icckd.bench.measure import Row
from icckd.files import json_line, write_text, write_whole


def write_rows_json(path: Path, rows: list[Row]) -> None:
    """A JSON list with a line for each row."""
    lines = ",\n".join(json_line(row) for row in rows)
    write_text(path, f"[\n{lines}\n]\n")


def write_rows_csv(path: Path, rows: list[Row]) -> None:
    """A column for each key that any row has."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)
