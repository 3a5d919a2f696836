"""The rows of a case as a table for a terminal: one's own times, and those of a recorded machine beside them."""

from collections.abc import Iterable

from icckd.bench.case import Case
from icckd.bench.floor import described
from icckd.bench.measure import Row
from icckd.bench.recorded import Recording

_NAME, _CELL = 34, 12
_SPREAD = "{:>17}"
_MODES = {"step": "loss and gradients", "forward": "loss alone"}
_LETTERS = ("n", "d", "c")


def case_table(function: str, case: Case, rows: list[Row], recording: Recording | None) -> str:
    """A line for each contender, the fastest first; below them who is left out, and why."""
    recorded = recording.of_case(case.name) if recording else []
    timed = [row for row in rows if "mode" in row]
    lines = [heading(function, case), ""]
    for mode, meaning in _MODES.items():
        own = _by_contender(timed, mode)
        theirs = _by_contender(recorded, mode)
        if own or theirs:
            lines += [_header(meaning, recording if recorded else None), *_lines(own, theirs, bool(recorded))]
            lines += [*_floor_line(case, mode, list(own.values())), ""]
    left_out = [f"  {row['contender']}: {row['why_not']}" for row in rows if "why_not" in row]
    if left_out:
        lines += ["  left out", *(f"  {line}" for line in left_out), ""]
    if recording and not recorded:
        lines += [f"  {recording.name} has no rows of this dtype and these sizes.", ""]
    return "\n".join(lines)


def heading(function: str, case: Case) -> str:
    """Function, dtype and sizes."""
    sizes = (f"{letter.upper()} = {case.sizes[letter]:,}" for letter in _LETTERS if letter in case.sizes)
    return ", ".join([function, case.dtype, *sizes])


def _by_contender(rows: Iterable[Row], mode: str) -> dict[str, Row]:
    chosen = (row for row in rows if row["mode"] == mode)
    return {row["contender"]: row for row in sorted(chosen, key=lambda row: row["median_ms"])}


def _header(meaning: str, recording: Recording | None) -> str:
    cells = ["median, ms", _SPREAD.format("20–80 %"), "× floor", "× peer", "error"]
    return _line(meaning, [*cells, *([f"{recording.name}, ms"] if recording else [])])


def _lines(own: dict[str, Row], theirs: dict[str, Row], is_beside: bool) -> Iterable[str]:
    for name in dict.fromkeys((*own, *theirs)):
        cells = _cells(own[name]) if name in own else ["–"] * 5
        beside = [_milliseconds(theirs[name]["median_ms"]) if name in theirs else "–"] if is_beside else []
        yield _line(f"  {name}", [*cells, *beside])


def _cells(row: Row) -> list[str]:
    floor, peer, error = (row[key] for key in ("fraction_of_floor", "times_faster_than_best_peer", "error"))
    return [
        _milliseconds(row["median_ms"]),
        _SPREAD.format(f"{_milliseconds(row['q20_ms'])}–{_milliseconds(row['q80_ms'])}"),
        "–" if floor is None else f"{1 / floor:.2f}",
        "–" if peer is None else f"{1 / peer:.2f}",
        "–" if error is None else f"{error:.0e}",
    ]


def _floor_line(case: Case, mode: str, own: list[Row]) -> list[str]:
    if not own or own[0]["floor_ms"] is None:
        return []
    what = described(case.work(mode == "step"), own[0]["floor"])
    return [_line("  floor", [_milliseconds(own[0]["floor_ms"])]) + f"    {what}"]


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def _line(name: str, cells: list[str]) -> str:
    return f"  {name:<{_NAME}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)
