"""Writes icckd/backends/proven.py from the proofs under bench/results/: `python -m bench.gpu.promote`.

Of several proofs for one architecture the newest counts.
"""

import json
from pathlib import Path
from typing import Any

from bench.gpu.stages import ROOT
from icckd.files import write_text

RESULTS = ROOT / "bench" / "results"
TARGET = ROOT / "icckd" / "backends" / "proven.py"
_HEAD = '''"""Which backend has been proven the fastest on an architecture: by a run recorded under `bench/results/`."""

# Architecture → family of operators → backend.
PROVEN: dict[str, dict[str, str]] = '''


def proofs(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The recorded proofs, the oldest first; those of dry runs are none."""
    recorded = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/proof.json")]
    return sorted((proof for proof in recorded if proof["architecture"] != "none"), key=lambda proof: proof["date"])


def proven(recorded: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Architecture → family → backend."""
    return {proof["architecture"]: proof["fastest"] for proof in recorded if proof["fastest"]}


def source(table: dict[str, dict[str, str]]) -> str:
    """The file's text."""
    lines = []
    for architecture, fastest in sorted(table.items()):
        lines += [
            f'    "{architecture}": {{',
            *(f'        "{family}": "{backend}",' for family, backend in fastest.items()),
        ]
        lines.append("    },")
    return _HEAD + ("{\n" + "\n".join(lines) + "\n}\n" if lines else "{}\n")


def main() -> None:
    write_text(TARGET, source(proven(proofs())))


if __name__ == "__main__":
    main()
