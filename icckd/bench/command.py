"""`icckd bench`: measures case by case, prints each as it is done, and writes what was asked for at the end."""

from argparse import Namespace

import torch

from icckd.bench import options, output, recorded
from icckd.bench.case import Case
from icckd.bench.measure import Row
from icckd.bench.speed import everybody, measure_case
from icckd.bench.table import case_table, heading
from icckd.console import console

_LEGEND = """× floor: time over the least that the bytes or the matrix products of the case take here
× peer: time over that of the fastest peer
error: the largest of results and gradients against float64, relative"""


def bench(given: Namespace) -> None:
    """Do what the command line's arguments say. Raises UserError before anything is measured where they are wrong."""
    wanted = options.read(given)
    if wanted.plot:
        # What is missing should be missing before minutes are spent.
        from icckd.bench.plot import draw
    if wanted.threads:
        torch.set_num_threads(wanted.threads)
    recording = recorded.beside(wanted.against, wanted.device.type, [case.name for _, case in wanted.cases])
    rows: list[Row] = []
    for function, case in wanted.cases:
        found = _measured(function, case, wanted)
        own = [{"benchmark": "functions", "function": function, **row, "recorded": None} for row in found]
        print(case_table(function, case, own, recording), flush=True)
        rows += own
        if recording:
            rows += [{"benchmark": "functions", "function": function, **row} for row in recording.of_case(case.name)]
    print(f"{_LEGEND}\nhere: {recorded.conditions_line(rows[0])}")
    if recording:
        print(recording.line)
    if wanted.json:
        output.write_rows_json(wanted.json, rows)
    if wanted.csv:
        output.write_rows_csv(wanted.csv, rows)
    if wanted.plot:
        draw(rows, wanted.plot)


def _measured(function: str, case: Case, wanted: options.Options) -> list[Row]:
    """The rows of a case, while a line on the terminal says what is being done."""
    title = heading(function, case)
    with console.status(title) as status:
        return measure_case(
            case,
            everybody(case, wanted.device),
            wanted.device,
            wanted.seconds,
            lambda text: status.update(f"{title}: {text}"),
        )
