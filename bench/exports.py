"""How much the files that `icckd export` writes differ from their networks: a table of every architecture.

    python -m bench.exports [NETWORK ...]

Random weights, normalisations that have seen random images; images of 32×32, signals of 128 samples. Needs the extra
"export". Takes about three minutes; docs/deploying.md has the table.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from icckd.models import ARCHITECTURES, ModelDescription, build_model, save_model
from icckd.models.export import export_model

_CLASSES, _CHANNELS, _PASSES = 100, 3, 20


def rows(names: list[str]) -> Iterator[str]:
    """The table in Markdown, line by line."""
    yield "| network | .pt2 | .onnx | .onnx, of the largest number |"
    yield "|---|--:|--:|--:|"
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            weights = _saved(Path(folder) / "model", name)
            torch_file, onnx_file = (export_model(weights, Path(folder) / f"network{x}") for x in (".pt2", ".onnx"))
        yield f"| {name} | {torch_file.difference:.1e} | {onnx_file.difference:.1e} | {onnx_file.relative:.1e} |"


def _saved(folder: Path, arch: str) -> Path:
    torch.manual_seed(0)
    size = [1, 128] if arch.startswith("signal") else 32
    model = build_model(arch, _CHANNELS, _CLASSES, size)
    with torch.no_grad():
        for _ in range(_PASSES):
            model(torch.randn(16, *model.image_shape))
    classes = [str(number) for number in range(_CLASSES)]
    save_model(folder, model, ModelDescription(arch, classes, _CHANNELS, size, [0.5] * _CHANNELS, [0.25] * _CHANNELS))
    return folder


if __name__ == "__main__":
    for line in rows(sys.argv[1:] or [name for name in ARCHITECTURES if ":" not in name]):
        print(line, flush=True)
