"""The tables of docs/distributed.md, for `bench.table`."""

from collections.abc import Callable, Iterable

from bench.distributed import model
from icckd.bench.measure import Row

_MACHINES = (model.H100, model.A100)
# What stands for a table of rows that nobody has recorded.
OWED = "Owed: no rows are recorded."
# What the model's tables are of: rows of bfloat16.
_RANKS, _ROWS, _CLASSES, _DIM, _WIDTH = (8, 64, 1024), 256, 1000, 512, 2


def exchange(rows: list[Row]) -> str:
    """A table for each case: time and bytes by number of processes, the errors, and the kernel's count of bytes."""
    chosen = [r for r in rows if r["benchmark"] == "distributed" and r["part"] == "exchange"]
    if not chosen:
        return OWED
    cases = list(dict.fromkeys(r["case"] for r in chosen))
    return "\n\n".join([*(_of_case([r for r in chosen if r["case"] == case]) for case in cases), conditions(chosen)])


def _of_case(rows: list[Row]) -> str:
    first, counts = rows[0], sorted({r["processes"] for r in rows})
    sizes = f"{first['rows_a_rank']} rows a rank, {first['c']} classes, D = {first['d']}"
    head = [*(f"{count} process{'es' * (count > 1)}" for count in counts), "largest error", "kernel's count / ours"]
    lines = [f"**{first['case']}** ({sizes})", "", _line(["ms; MB sent by a rank (predicted)", *head])]
    lines.append(_line(["---", *("--:" for _ in head)]))
    for name in dict.fromkeys(r["contender"] for r in rows):
        of_name = {r["processes"]: r for r in rows if r["contender"] == name}
        cells = [_cell(of_name[count]) if count in of_name else "–" for count in counts]
        lines.append(_line([name, *cells, _largest_error(of_name.values()), _kernels_count(of_name.values())]))
    return "\n".join(lines)


def _cell(row: Row) -> str:
    time = f"{row['median_ms']:.1f}"
    if not row["predicted_bytes"]:
        return time
    return f"{time}; {row['sent_mean_bytes'] / 1e6:.2f} ({row['predicted_bytes'] / 1e6:.2f})"


def _largest_error(rows: Iterable[Row]) -> str:
    errors = [r[key] for r in rows for key in ("loss_error", "gradient_error") if r[key] is not None]
    return f"{max(errors):.0e}" if errors else "another loss"


def _kernels_count(rows: Iterable[Row]) -> str:
    ratios = [r["loopback_bytes"] / r["sent_mean_bytes"] for r in rows if r["loopback_bytes"] and r["sent_mean_bytes"]]
    return f"{min(ratios):.3f} to {max(ratios):.3f}" if ratios else "–"


def hidden(rows: list[Row]) -> str:
    """What of the exchange a training step hides."""
    chosen = [r for r in rows if r["benchmark"] == "distributed" and r["part"] == "hidden"]
    if not chosen:
        return OWED
    head = ["processes", "step, ms", "exchange alone, ms", "step longer by, ms", "hidden"]
    lines = [_line(["training step", *head]), _line(["---", *("--:" for _ in head)])]
    for row in chosen:
        times = (f"{row[key]:.1f}" for key in ("median_ms", "alone_ms", "more_ms"))
        lines.append(_line([row["contender"], str(row["processes"]), *times, f"{row['hidden']:.0%}"]))
    return "\n".join([*lines, "", conditions(chosen)])


def modelled(_: list[Row]) -> str:
    """What the model says of more GPUs, a table for each machine; of no recorded row."""
    batches = [model.Batch(ranks, _ROWS, _CLASSES, _DIM, _WIDTH) for ranks in _RANKS]
    sizes = f"{_ROWS} rows a GPU, {_CLASSES} classes, D = {_DIM}, bfloat16. By formula: nothing here is measured."
    return "\n\n".join([*(_of_machine(machine, batches) for machine in _MACHINES), sizes])


def _of_machine(machine: model.Machine, batches: list[model.Batch]) -> str:
    head = [f"{batch.ranks} GPUs" for batch in batches]
    lines = [_line([f"{machine.name}: ms; MB sent by a GPU", *head]), _line(["---", *("--:" for _ in head)])]
    for name in (name for name in model.STRATEGIES if name != "icckd, auto"):
        cells = (
            f"{1e3 * model.seconds(name, batch, machine):.2f}; {model.sent_bytes(name, batch) / 1e6:.2f}"
            for batch in batches
        )
        lines.append(_line([name, *cells]))
    lines.append(_line(["time of gather / owner", *(_gain(batch, machine) for batch in batches)]))
    spare = (f"{1e6 * model.spare(batch, machine):.1f} µs" for batch in batches)
    return "\n".join([*lines, _line(["equal where an owner's message took longer by", *spare])])


def _gain(batch: model.Batch, machine: model.Machine) -> str:
    times = (model.seconds(f"icckd, {strategy}", batch, machine) for strategy in ("gather", "owner"))
    return f"{next(times) / next(times):.1f}"


def conditions(rows: list[Row]) -> str:
    """What the rows were measured on."""
    row = rows[0]
    return (
        f"{row['processor']}, {row['cores']} cores that all processes share, {row['threads']} thread a process, torch "
        f"{row['torch']}, icckd {row['icckd']} at commit {row['commit']}, {row['date'][:10]}."
    )


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "distributed": exchange,
    "distributed_hidden": hidden,
    "distributed_model": modelled,
}
