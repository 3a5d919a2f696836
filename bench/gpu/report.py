"""What a visit found, in Markdown: summary.md, and the tables that `bench.table` fills into docs/gpu.md.

Each table is made from recorded rows alone; where there are none it says that they are owed.
"""

from collections.abc import Callable
from functools import partial

from bench.gpu import predictions
from bench.gpu.ceilings import Ceilings
from bench.gpu.targets import best, targets
from icckd.bench.measure import Row

OWED = "Owed: no run on a GPU is recorded yet."
_ASSUMED = "\\* Ceilings that this run did not come to measure are those of another device of the kind."
# Failures that the end of a visit's output names, and characters of the reason of each.
_NAMED, _SHOWN = 12, 300


def ceilings(rows: list[Row]) -> str:
    """What the device can do."""
    chosen = [row for row in rows if row.get("stage") == "ceilings"]
    if not chosen:
        return OWED
    # Of no device in particular: what was measured alone.
    found = Ceilings.of(chosen, "")
    lines = ["| ceiling | measured |", "| --- | --: |"]
    if found.bandwidth is not None:
        lines.append(f"| copy, read + written | {found.bandwidth / 1e12:.2f} TB/s |")
    lines += [f"| matrix products, {dtype} | {rate / 1e12:.0f} TFLOP/s |" for dtype, rate in found.rates.items()]
    return "\n".join([*lines, "", _conditions(chosen)])


def target_table(rows: list[Row], tiny: bool = False) -> str:
    """Every target, met, missed or owed; with `tiny`, what a dry run found for its own sizes, which is neither."""
    lines = ["| target | backend | wanted | measured | |", "| --- | --- | --: | --: | --- |"]
    for target in targets(tiny):
        value, verdict = target.outcome(rows)
        verdict = "dry run" if tiny else verdict
        sign = "≤" if target.at_most else "≥"
        measured = "–" if value is None else f"{value:.2f} {target.unit}".strip()
        wanted = f"{sign} {target.bound:g} {target.unit}".strip()
        lines.append(f"| {target.text} | {target.backend} | {wanted} | {measured} | {verdict} |")
    if any(row.get("ceilings_assumed") for row in rows):
        lines += ["", _ASSUMED]
    return "\n".join(lines)


def speed(rows: list[Row], family: str) -> str:
    """A table for each case of a family: contenders, the fastest first."""
    chosen = [row for row in rows if row.get("stage") == "speed" and row["family"] == family]
    if not chosen:
        return OWED
    parts = [_case_table([row for row in chosen if row["case"] == case]) for case in _distinct(chosen, "case")]
    assumed = [_ASSUMED] if any(row.get("ceilings_assumed") for row in chosen) else []
    return "\n\n".join([*parts, *assumed, _conditions(chosen)])


def _case_table(rows: list[Row]) -> str:
    header = ["contender", "forward, ms", "step, ms", "in a CUDA graph, ms", "of the floor", "peak memory, MB", "error"]
    lines = [f"**{rows[0]['case']}**", "", _line(header), _line(["---", *["--:"] * (len(header) - 1)])]
    names = _distinct(rows, "contender")
    for name in sorted(names, key=lambda name: _median(best(rows, rows[0]["case"], name))):
        own = {row["mode"]: row for row in rows if row["contender"] == name and "mode" in row}
        fastest = best(rows, rows[0]["case"], name)
        if fastest is None:
            why = next(row["why_not"] for row in rows if row["contender"] == name)
            lines.append(_line([name, why.replace("|", "\\|"), *[""] * (len(header) - 2)]))
            continue
        graph = own.get("step, graph") or own.get("forward, graph")
        cells = [_milliseconds(own.get("forward")), _milliseconds(own.get("step")), _milliseconds(graph)]
        peak = own.get("step", own.get("forward", fastest)).get("peak_bytes")
        cells.append(_number(fastest["fraction_of_floor"], "{:.2f}" + "*" * bool(fastest.get("ceilings_assumed"))))
        cells.append(_number(None if peak is None else peak / 1e6, "{:,.0f}"))
        cells.append(_number(fastest["error"], "{:.0e}"))
        lines.append(_line([name, *cells]))
    return "\n".join(lines)


def accuracy(rows: list[Row]) -> str:
    """The largest error of each backend and dtype over that of PyTorch in the same dtype."""
    chosen = [row for row in rows if row.get("stage") == "accuracy" and "error" in row]
    if not chosen:
        return OWED
    lines = ["| family | dtype | backend | checks | passed | largest error |", "| --- | --- | --- | --: | --: | --: |"]
    for family, dtype, contender in dict.fromkeys((r["family"], r["dtype"], r["contender"]) for r in chosen):
        own = [r for r in chosen if (r["family"], r["dtype"], r["contender"]) == (family, dtype, contender)]
        passed, largest = sum(r["passed"] for r in own), max(r["error"] or 0.0 for r in own)
        lines.append(f"| {family} | {dtype} | {contender} | {len(own)} | {passed} | {largest:.1e} |")
    return "\n".join([*lines, "", _conditions(chosen)])


def summary(machine: Row, proof: Row, tests: list[Row], rows: list[Row]) -> str:
    """summary.md."""
    device, dry_run = machine["device"], machine["dry_run"]
    parts = [
        f"# bench.gpu on {device['name']}",
        f"{machine['date']}, commit {machine['commit']}, torch {machine['torch']}, Triton {machine['triton']}, "
        f"CUDA {machine['cuda']}, {device['architecture']}.",
    ]
    if dry_run:
        parts.append(
            "A dry run: tiny sizes, in Triton's interpreter, on a CPU. No time here says anything about a GPU."
        )
    parts += ["## Targets", target_table(rows, dry_run), "## Ceilings", ceilings(rows), "## Accuracy", accuracy(rows)]
    parts += [
        "## Backends",
        _verdicts(proof),
        "## GPU tests",
        _test_lines(tests, machine),
        "## Stages",
        _stage_lines(machine),
    ]
    for family in _distinct([row for row in rows if row.get("stage") == "speed"], "family"):
        parts += [f"## {family}", speed(rows, family)]
    return "\n\n".join(parts) + "\n"


def ending(machine: Row, proof: Row, rows: dict[str, list[Row]]) -> str:
    """What a visit prints last, short: its targets at the very end."""
    failed = [test for test in rows["tests"] if test["outcome"] == "failed"]
    wrong = [row for row in rows["accuracy"] if row["passed"] is False]
    parts = [_stage_lines(machine | {"left_out": {}}), _test_count(rows["tests"], machine)]
    parts += [f"{test['test']}: {test['why'][:_SHOWN]}" for test in failed[:_NAMED]]
    parts += [f"{row['case']}, {row['contender']}: {row['why']}" for row in wrong[:_NAMED]]
    left_out = {stage: len(cases) for stage, cases in machine["left_out"].items() if cases}
    parts.append(f"Left out for lack of time: {left_out or 'nothing'}.")
    return "\n\n".join([*parts, _verdicts(proof), target_table(rows["speed"], machine["dry_run"])])


def _verdicts(proof: Row) -> str:
    lines = ["| family | backend | passed | tests | checks | why not |", "| --- | --- | --- | --: | --: | --- |"]
    for backend, families in proof["backends"].items():
        for family, verdict in families.items():
            tests = f"{verdict['tests_passed']} of {verdict['tests_planned']}"
            passed = "yes" if verdict["passed"] else "no"
            lines.append(_line([family, backend, passed, tests, str(verdict["checks_passed"]), verdict["why"] or ""]))
    fastest = ", ".join(f"{family}: {backend}" for family, backend in proof["fastest"].items())
    return "\n".join([*lines, "", f"Fastest of those that passed: {fastest or 'none'}."])


def _test_count(tests: list[Row], machine: Row) -> str:
    count = {kind: sum(test["outcome"] == kind for test in tests) for kind in ("passed", "failed", "skipped")}
    count["not run"] = len(machine["left_out"]["tests"])
    return "GPU tests: " + ", ".join(f"{number} {kind}" for kind, number in count.items()) + "."


def _test_lines(tests: list[Row], machine: Row) -> str:
    lines = [_test_count(tests, machine)]
    lines += [f"- {test['test']}: {test['why']}" for test in tests if test["outcome"] == "failed"]
    return "\n".join(lines)


def _stage_lines(machine: Row) -> str:
    lines = ["| part | stage | seconds | |", "| --- | --- | --: | --- |"]
    for stage in machine["stages"]:
        lines.append(f"| {stage['part']} | {stage['stage']} | {stage['seconds']} | {stage['why'] or ''} |")
    for row in machine["failed"]:
        who = f", {row['contender']}" if row["contender"] else ""
        lines.append(f"| {row['part']} | {row['stage']}: {row['case']}{who} | | {row['why']} |")
    for stage, cases in machine["left_out"].items():
        lines += [f"| | {stage}: {case} | | left out for lack of time |" for case in cases]
    return "\n".join(lines)


def _distinct(rows: list[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def _median(row: Row | None) -> float:
    return float("inf") if row is None else row["median_ms"]


def _milliseconds(row: Row | None) -> str:
    return "" if row is None else f"{row['median_ms']:.3f}"


def _number(value: float | None, format_: str) -> str:
    return "" if value is None else format_.format(value)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _conditions(rows: list[Row]) -> str:
    row = rows[0]
    commits = " and ".join(_distinct(rows, "commit"))
    software = f"torch {row['torch']}, Triton {row['triton']}, icckd at commit {commits}"
    return f"{row['processor']}, {software}, {row['date'][:10]}."


def _on_gpus(table: Callable[[list[Row]], str]) -> Callable[[list[Row]], str]:
    """The table of those rows that a GPU gave; the others are of dry runs."""
    return lambda rows: table([row for row in rows if row["device"] == "cuda"])


def _of_newest(table: Callable[[list[Row]], str]) -> Callable[[list[Row]], str]:
    """The table of each case's newest run on a GPU, where rows of several runs are given."""

    def chosen(rows: list[Row]) -> str:
        newest: dict[tuple[str, str | None], Row] = {}
        for row in sorted(rows, key=lambda row: row["date"]):
            newest[row["stage"], row.get("case")] = row
        return table([row for row in rows if newest[row["stage"], row.get("case")]["commit"] == row["commit"]])

    return _on_gpus(chosen)


# What `bench.table` fills in, by name.
TABLES: dict[str, Callable[[list[Row]], str]] = {
    "gpu_predictions": _on_gpus(predictions.table),
    "gpu_ceilings": _of_newest(ceilings),
    "gpu_targets": _of_newest(target_table),
    "gpu_accuracy": _of_newest(accuracy),
    **{
        f"gpu_{name}": _of_newest(partial(speed, family=name))
        for name in ("intra_class", "cross_entropy", "kd_kl", "relational", "class_memory", "layout")
    },
}
