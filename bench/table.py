"""Fills the tables of a Markdown file from recorded rows, so that no number is typed by hand.

`python -m bench.table FILE.md ROWS.json …` replaces what stands between `<!-- table: NAME -->` and `<!-- end -->`.
NAME is one of: targets, skew, memory, cross_entropy, crd, neighbours, train, those of `bench.distributed.table`, and
those of `bench.gpu.report`, which say that they are owed where no rows of a GPU are given.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.distributed import table as distributed
from bench.gpu import report
from icckd.bench.measure import Row


def fill(text: str, rows: list[Row]) -> str:
    """`text` with every table made anew from `rows`."""

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]](rows)}\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL)


def targets(rows: list[Row]) -> str:
    chosen = [r for r in rows if r.get("sweep") == "targets"]
    cases = list(dict.fromkeys((r["n"], r["d"], r["c"]) for r in chosen))
    lines = [_line(["milliseconds, median (× floor)", *(f"N = {n}, D = {d}, C = {c}" for n, d, c in cases)])]
    lines.append(_line(["---", *("--:" for _ in cases)]))
    for name in dict.fromkeys(r["contender"] for r in chosen):
        cells = {
            (r["n"], r["d"], r["c"]): f"{r['median_ms']:.1f} ({r['times_floor']:.2f})"
            for r in chosen
            if r["contender"] == name
        }
        lines.append(_line([name, *(cells.get(case, "–") for case in cases)]))
    return "\n".join([*lines, "", _conditions(chosen)])


def skew(rows: list[Row]) -> str:
    chosen = [r for r in rows if r.get("sweep") == "skew"]
    shapes = list(dict.fromkeys(r["sizes"] for r in chosen))
    lines = [_line(["milliseconds, median (× own floor)", *shapes]), _line(["---", *("--:" for _ in shapes)])]
    for name in dict.fromkeys(r["contender"] for r in chosen):
        # Rows recorded before there was an own floor have none.
        cells = {
            r["sizes"]: f"{r['median_ms']:.1f} ({r['times_own_floor']:.2f})" if "times_own_floor" in r else "–"
            for r in chosen
            if r["contender"] == name
        }
        lines.append(_line([name, *(cells.get(shape, "–") for shape in shapes)]))
    return "\n".join([*lines, "", _conditions(chosen)])


def memory(rows: list[Row]) -> str:
    chosen = [r for r in rows if r.get("sweep") == "memory"]
    lines = [_line(["contender", "(peak + inputs) / (inputs + gradients)"]), _line(["---", "--:"])]
    for row in chosen:
        ratio = row["times_inputs_and_gradients"]
        lines.append(_line([row["contender"], "out of memory" if ratio is None else f"{ratio:.2f}"]))
    return "\n".join([*lines, "", _conditions(chosen)])


def cross_entropy(rows: list[Row]) -> str:
    chosen = [r for r in rows if r["benchmark"] == "cross_entropy"]
    cases = list(dict.fromkeys((r["n"], r["c"]) for r in chosen))
    lines = [_line(["milliseconds, median (× eager)", *(f"N = {n}, C = {c}" for n, c in cases)])]
    lines.append(_line(["---", *("--:" for _ in cases)]))
    for name in dict.fromkeys(r["contender"] for r in chosen):
        cells = {
            (r["n"], r["c"]): f"{r['median_ms']:.1f} ({r['times_eager']:.2f})" for r in chosen if r["contender"] == name
        }
        lines.append(_line([name, *(cells.get(case, "–") for case in cases)]))
    return "\n".join([*lines, "", _conditions(chosen)])


def crd(rows: list[Row]) -> str:
    chosen = [r for r in rows if r["benchmark"] == "crd"]
    head = ["way", "milliseconds, median", "× public", "× floor", "largest error", "peak, MB"]
    lines = [_line(head), _line(["---", *("--:" for _ in head[1:])])]
    for row in chosen:
        errors, peak = (row["products_error"], row["gradient_error"]), row["peak_bytes"]
        lines.append(
            _line(
                [
                    row["contender"],
                    *(f"{row[key]:.{digits}f}" for key, digits in (("median_ms", 1), ("times_public", 3))),
                    f"{row['times_floor']:.2f}",
                    "–" if None in errors else f"{max(errors):.0e}",
                    "–" if peak is None else f"{peak / 1e6:.0f}",
                ]
            )
        )
    return "\n".join([*lines, "", _conditions(chosen)])


def neighbours(rows: list[Row]) -> str:
    chosen = [r for r in rows if r["benchmark"] == "neighbours"]
    head = ["function", "N", "D", "C", "dtype", "milliseconds", "dense"]
    head += ["peak, MB", "stated", "dense", "error", "dense"]
    lines = [_line(head), _line(["---", *("--:" for _ in head[1:])])]
    by_case: dict[tuple, dict[str, Row]] = {}
    for row in chosen:
        key = tuple(row[name] for name in ("function", "n", "d", "c", "dtype"))
        by_case.setdefault(key, {})[row["contender"]] = row
    for (function, *sizes, dtype), ways in by_case.items():
        both = [ways.get(way, {}) for way in ("icckd", "dense")]
        times, peaks, errors = (
            [_cell(row.get(key), shown, scale) for row in both]
            for key, shown, scale in (("median_ms", ".1f", 1), ("peak_bytes", ".0f", 1e6), ("error", ".0e", 1))
        )
        stated = _cell(both[0].get("stated_bytes"), ".0f", 1e6)
        lines.append(_line([function, *map(str, sizes), dtype, *times, peaks[0], stated, peaks[1], *errors]))
    return "\n".join([*lines, "", _conditions(chosen)])


def _cell(value: float | None, shown: str, scale: float) -> str:
    return "–" if value is None else format(value / scale, shown)


def train(rows: list[Row]) -> str:
    chosen = [r for r in rows if r["benchmark"] == "train"]
    parts = [
        _of_part(chosen, "steps", "milliseconds a step, median (× floor)", "{teacher}, {batch}"),
        _of_part(chosen, "input", "input: images per second (× DataLoader)", "batch {batch}, views {views}"),
    ]
    if any(r["part"] == "streamed input" for r in chosen):
        title, case = "streamed input: images per second (× DataLoader)", "{image_size} pixels, views {views}"
        parts.append(_of_part(chosen, "streamed input", title, case))
    return "\n\n".join([*parts, _conditions(chosen)])


def _of_part(rows: list[Row], part: str, title: str, case: str) -> str:
    """The table of one part of `bench.train`, a column for each `case`."""
    value, ratio = ("median_ms", "times_floor") if part == "steps" else ("images_per_second", "speed_over_loader")
    chosen = (r for r in rows if r["part"] == part)
    return _by_case(title, ((r["contender"], case.format(**r), r[value], r[ratio]) for r in chosen))


def _by_case(title: str, entries: Iterable[tuple[str, str, float, float]]) -> str:
    """A row for each name, a column for each case, from (name, case, value, ratio)."""
    cells = {(name, case): f"{value:.1f} ({ratio:.2f})" for name, case, value, ratio in entries}
    names, cases = (list(dict.fromkeys(each)) for each in zip(*cells, strict=True))
    lines = [_line([title, *cases]), _line(["---", *("--:" for _ in cases)])]
    lines += [_line([name, *(cells.get((name, case), "–") for case in cases)]) for name in names]
    return "\n".join(lines)


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "targets": targets,
    "skew": skew,
    "memory": memory,
    "cross_entropy": cross_entropy,
    "crd": crd,
    "neighbours": neighbours,
    "train": train,
    **distributed.TABLES,
    **report.TABLES,
}


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _conditions(rows: list[Row]) -> str:
    row = rows[0]
    return (
        f"{row['processor']}, {row['threads']} threads, torch {row['torch']}, icckd {row['icckd']} at commit "
        f"{row['commit']}, {row['date'][:10]}."
    )


def main() -> None:
    document, *recorded = map(Path, sys.argv[1:])
    rows = [row for path in recorded for row in json.loads(path.read_text())]
    document.write_text(fill(document.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
