"""Writes icckd/bench/recorded/NAME.json, which the wheel carries, from bench/results: `python -m bench.recorded`.

`icckd bench` shows them beside what it measures. Its own rows are recorded on a CPU by
`icckd bench --against none --json bench/results/cpu/functions.json`.
"""

import json
from pathlib import Path
from typing import Any

from icckd.bench.functions import AXES, FUNCTIONS
from icckd.bench.measure import Row
from icckd.files import json_line, write_text

_ROOT = Path(__file__).parents[1]
RESULTS, TARGET = _ROOT / "bench" / "results", _ROOT / "icckd" / "bench" / "recorded"
# The name of a recording, and the rows that it is made from.
SOURCES = {"h100": "h100-third/speed.json", "cpu": "cpu/functions.json"}
_FAMILIES = {case.family for function in FUNCTIONS.values() for case in function.cases("quick", ["float32"], {})}
_CONDITIONS = ("device", "processor", "threads", "icckd", "torch", "python", "triton", "commit", "date")
_KEPT = ("family", "case", *AXES.values(), "dtype", "contender", "is_peer", "mode")
_NUMBERS = ("median_ms", "q20_ms", "q80_ms", "floor_ms", "fraction_of_floor", "times_faster_than_best_peer")
# Digits that a time has a meaning to.
_DIGITS = 4


def compact(rows: list[Row]) -> dict[str, Any]:
    """What is kept of a machine's rows: those of the functions that `icckd bench` measures, as it measures them."""
    modes = {True: ("step",), False: ("step", "forward")}
    chosen = [row for row in rows if row["family"] in _FAMILIES and row.get("mode") in modes[row["is_peer"]]]
    conditions = {key: chosen[0][key] for key in _CONDITIONS}
    kept = [{key: row[key] for key in _KEPT if key in row} | _rounded(row) for row in chosen]
    differing = [key for key in ("processor", "torch", "commit") if any(row[key] != conditions[key] for row in chosen)]
    if differing:
        raise ValueError(f"rows of one machine differ in {', '.join(differing)}")
    return {"conditions": conditions, "rows": kept}


def text(content: dict[str, Any]) -> str:
    """The file, with a line for each row."""
    rows = ",\n".join(json_line(row) for row in content["rows"])
    return f'{{"conditions": {json_line(content["conditions"])}, "rows": [\n{rows}\n]}}\n'


def recordings() -> dict[str, str]:
    """The text of every recording whose rows there are, by name."""
    paths = {name: RESULTS / source for name, source in SOURCES.items()}
    return {
        name: text(compact(json.loads(path.read_text(encoding="utf-8"))))
        for name, path in paths.items()
        if path.exists()
    }


def _rounded(row: Row) -> Row:
    return {key: None if row[key] is None else float(f"{row[key]:.{_DIGITS}g}") for key in _NUMBERS}


def main() -> None:
    for name, content in recordings().items():
        write_text(TARGET / f"{name}.json", content)


if __name__ == "__main__":
    main()
