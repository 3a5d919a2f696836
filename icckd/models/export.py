"""Trained networks for other programs: as ONNX, or as PyTorch's `torch.export` has it.

A file takes images as anybody has them, normalises them itself, and is compared with the network before it is written.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from icckd.errors import UserError, reason
from icckd.files import write_whole
from icckd.models.files import ModelDescription, load_model
from icckd.models.model import Model
from icckd.version import __version__

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Sizes of the batches by which a file is compared with its network: one, and some that the export has not seen.
BATCH_SIZES = (1, 2, 7)
# The largest difference that is taken for rounding, beside the largest number of the network's own output, or 1 where
# that is smaller. This project's choice: more than ten times what other orders of summation make of any network here
# (bench.exports).
TOLERANCE = 1e-4
# torch.export takes a size of 1, or of another input, for one that never changes.
_EXAMPLES = 3

Outputs = dict[str, Tensor]
Run = Callable[[Tensor], Outputs]


class WithNormalisation(nn.Module):
    """What a file computes: float32 images (N, channels, H, W) in [0, 1] → features (N, F) and logits (N, classes).

    Of signals, (N, channels, 1, length), as they were recorded. `model` is put into its evaluation mode.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Model, description: ModelDescription):
        super().__init__()
        self.model = model.eval()
        mean, std = (torch.tensor(x, dtype=torch.float64).view(-1, 1, 1) for x in (description.mean, description.std))
        self.register_buffer("scale", (1 / std).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, images: Tensor) -> Outputs:
        features, logits = self.model(images * self.scale + self.shift)
        return {"features": features, "logits": logits}


@dataclass(frozen=True)
class Export:
    """What was written: `inputs` are channels, height and width, `outputs` names and sizes.

    `difference` is the largest between outputs of the file and of the network, `relative` the largest beside the
    largest number of the output, or 1 where that is smaller, as TOLERANCE means it.
    """

    path: Path
    inputs: tuple[int, ...]
    outputs: dict[str, int]
    difference: float
    relative: float

    def __str__(self) -> str:
        batch = ", ".join(map(str, BATCH_SIZES[:-1])) + f" and {BATCH_SIZES[-1]}"
        outputs = ", ".join(f"{name} (N, {size})" for name, size in self.outputs.items())
        return (
            f"{self.path}: images (N, {', '.join(map(str, self.inputs))}) → {outputs}\n"
            f"largest difference from the network's own outputs, of {batch} random images: {self.difference:.2g}, "
            f"{self.relative:.2g} of the largest number"
        )


def export_model(weights: Path, to: Path) -> Export:
    """Write the network saved at `weights`, a folder or a model.safetensors, to `to`, in the format its suffix says.

    .onnx: ONNX, which needs the extra "export". .pt2: what `torch.export.load` reads. Either takes a batch of any size,
    and holds the names of the classes, the architecture and the version of icckd as texts (`metadata`). A file that is
    there is replaced; it is written whole or not at all.

    Raises UserError where the format or the network is none, packages are missing, or the outputs differ from the
    network's own, in float32 on a CPU, by more than TOLERANCE; nothing is then written.
    """
    write = _WRITERS.get(to.suffix)
    if write is None:
        raise UserError(f"--to is {to}; its name should end in .onnx (ONNX) or .pt2 (torch.export)")
    if to.is_dir():
        raise UserError(f"--to is {to}, which is a folder; give the name of a file")
    if to.suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _imported(package)
    model, description = load_model(weights)
    network = WithNormalisation(model, description)
    with _quietly():
        content, run = write(network, description)
    difference, relative = _compare(network, run, str(to))
    write_whole(to, lambda temporary: temporary.write_bytes(content))
    sizes = {"features": model.feature_dim, "logits": model.classes}
    return Export(to, model.image_shape, sizes, difference, relative)


def metadata(description: ModelDescription) -> dict[str, str]:
    """What a file says of itself, by name: ONNX's metadata_props, and extra files of a .pt2."""
    of_signals = not isinstance(description.image_size, int)
    taken = "signals as recorded" if of_signals else "images, float32 in [0, 1]"
    return {
        "arch": description.arch,
        "classes": json.dumps(description.classes, ensure_ascii=False),
        "input": f"{taken}; the network normalises them itself",
        "icckd": __version__,
    }


def _torch_export(network: WithNormalisation, description: ModelDescription) -> tuple[bytes, Run]:
    content = io.BytesIO()
    torch.export.save(_program(network), content, extra_files=metadata(description))
    content.seek(0)
    return content.getvalue(), torch.export.load(content).module()


def _onnx(network: WithNormalisation, description: ModelDescription) -> tuple[bytes, Run]:
    names, graph = ["features", "logits"], _program(network)
    try:
        program = torch.onnx.export(
            graph,
            dynamo=True,
            input_names=["images"],
            output_names=names,
            dynamic_shapes={"images": {0: "batch"}},
            verbose=False,
        )
    except Exception as error:  # Of any kind, as where onnxscript is too old for this PyTorch.
        raise UserError(f"{network.model.arch} cannot be written as ONNX by these packages: {reason(error)}") from error
    assert program is not None
    program.model.metadata_props.update(metadata(description))
    program.model.producer_name, program.model.producer_version = "icckd", __version__
    content = program.model_proto.SerializeToString()
    session = _imported("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Outputs:
        return dict(zip(names, map(torch.from_numpy, session.run(names, {"images": images.numpy()})), strict=True))

    return content, run


_WRITERS = {".onnx": _onnx, ".pt2": _torch_export}


def _program(network: WithNormalisation) -> "ExportedProgram":
    """The network as a graph, of batches of any size. Raises UserError where PyTorch makes none of it."""
    batch = torch.export.Dim("batch", min=1)
    try:
        return torch.export.export(
            network, (_images(network, _EXAMPLES),), dynamic_shapes={"images": {0: batch}}, strict=False
        )
    except Exception as error:  # Of any kind: it is the network's own.
        raise UserError(f"{network.model.arch} cannot be exported for batches of any size: {reason(error)}") from error


def _images(network: WithNormalisation, count: int) -> Tensor:
    """Random images, the same each time; of signals random ones, too, of the mean and deviation that it expects."""
    shape = (count, *network.model.image_shape)
    generator = torch.Generator().manual_seed(count)
    if network.model.image_shape[1] == 1:
        return (torch.randn(shape, generator=generator) - network.shift) / network.scale
    return torch.rand(shape, generator=generator)


@torch.no_grad()
def _compare(network: WithNormalisation, run: Run, name: str) -> tuple[float, float]:
    """The largest difference of the file's outputs, and the largest by what TOLERANCE is of.

    Raises UserError where that is more than rounding.
    """
    largest = relative = 0.0
    for count in BATCH_SIZES:
        images = _images(network, count)
        own, exported = network(images), run(images)
        for output, expected in own.items():
            if not expected.isfinite().all():
                raise UserError(f"{name} is not written: the network's own {output} of random images are not finite")
            difference = (exported[output] - expected).abs().max().item()
            scale = max(expected.abs().max().item(), 1.0)
            if not difference <= TOLERANCE * scale:
                raise UserError(
                    f"{name} is not written: its {output} of {count} random images differ from the network's by "
                    f"{difference:.2g}, more than {TOLERANCE * scale:.2g}"
                )
            largest, relative = max(largest, difference), max(relative, difference / scale)
    return largest, relative


@contextmanager
def _quietly() -> Iterator[None]:
    """PyTorch keeps its warnings to itself, which concern nobody here.

    They are of parts of it that will change, of packages that these networks do not need, and of weights with their
    channels last, which it takes for parts of others. What a file computes is compared anyway.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _imported(package: str) -> ModuleType:
    """Raises UserError where it is not installed, or cannot be imported."""
    try:
        return import_module(package)
    except Exception as error:  # Of any kind, as a TypeError where protobuf is none that it was made for.
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        why = "is not installed" if missing else f"cannot be imported ({type(error).__name__}: {reason(error)})"
        raise UserError(f"ONNX needs {package}, which {why}: pip install 'icckd[export]'") from error
