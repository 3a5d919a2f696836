"""What a visit leaves behind, made anew from its rows: machine.json, proof.json, summary.md, speed.png."""

import json
from pathlib import Path
from typing import Any

from bench.gpu import figure, proof, report, results
from bench.gpu.stages import Visit
from icckd.bench.measure import Row

ROWS = ("tests", "ceilings", "accuracy", "speed")
FILES = (*(f"{name}.json" for name in ("machine", *ROWS, "proof")), "summary.md", "speed.png")
# What `prove` finds out and `measure` keeps.
_OF_PROVE = ("machine.json", "tests.json", "accuracy.json")


def begin(doing: Visit, parts: tuple[str, ...]) -> None:
    """An empty folder; or for `measure` alone one that holds what an earlier call proved."""
    doing.output.mkdir(parents=True, exist_ok=True)
    keep = () if "prove" in parts else _OF_PROVE
    for name in FILES:
        if name not in keep:
            (doing.output / name).unlink(missing_ok=True)
    earlier = _machine(doing.output)
    for kept, key in ((doing.stages, "stages"), (doing.failed, "failed")):
        kept += [row for row in earlier.get(key, []) if row["part"] not in parts]
    for stage in ("tests", "accuracy"):
        doing.left_out[stage] += earlier.get("left_out", {}).get(stage, [])
    for name in ROWS:
        results.add(doing.output / f"{name}.json")


def write(doing: Visit) -> tuple[Row, dict[str, Any], dict[str, list[Row]]]:
    """Everything but the figure, from what there is by now."""
    output = doing.output
    machine = _machine(output)
    if doing.part == "prove":
        doing.left_out["tests"] = doing.untested()
    machine |= {"stages": doing.stages, "failed": doing.failed, "left_out": doing.left_out, "dry_run": doing.dry_run}
    results.write(output / "machine.json", machine)
    rows = {name: results.read(output / f"{name}.json") for name in ROWS}
    proven = proof.prove(machine, rows["tests"], rows["accuracy"], rows["speed"])
    results.write(output / "proof.json", proven)
    text = report.summary(machine, proven, rows["tests"], [row for part in rows.values() for row in part])
    results.write_whole(output / "summary.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return machine, proven, rows


def draw(doing: Visit) -> None:
    """The figure, where there is anything to draw and something to draw with."""
    rows = results.read(doing.output / "speed.json")
    try:
        if rows:
            results.write_whole(doing.output / "speed.png", lambda temporary: figure.draw(rows, temporary))
    except (ImportError, OSError) as error:
        print(f"No figure: {error}.")


def _machine(output: Path) -> Row:
    path = output / "machine.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
