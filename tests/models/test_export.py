import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from icckd.cli import main
from icckd.errors import UserError
from icckd.files import write_text
from icckd.models import ARCHITECTURES, ModelDescription, Stages, build_model, export, load_model, save_model
from icckd.models.export import export_model, metadata
from icckd.version import __version__

CLASSES = ["cat", "Katze", "貓"]
MEAN, STD = [0.1, 0.5, 0.7], [0.2, 0.3, 0.9]
# A few that are quick; the others are slow.
NETWORKS = [
    ("convnet-small", 9),
    ("resnet8", 8),
    ("wrn_16_1", 8),
    ("vgg8", 8),
    ("signal-convnet-small", [1, 21]),
]
OTHERS = [(name, 32) for name in ARCHITECTURES if name not in dict(NETWORKS) and ":" not in name]


def saved(folder, arch, size):
    """A network whose normalisations have seen images, in `folder`."""
    torch.manual_seed(3)
    model = build_model(arch, channels=3, classes=len(CLASSES), image_size=size)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, *model.image_shape))
    save_model(folder, model, ModelDescription(arch, CLASSES, 3, size, MEAN, STD))
    return folder


def expected(folder, images):
    """Features and logits of the saved network, with its normalisation in float64."""
    model, _ = load_model(folder)
    mean, std = (torch.tensor(x, dtype=torch.float64).view(1, 3, 1, 1) for x in (MEAN, STD))
    with torch.no_grad():
        return model.double().eval()((images.double() - mean) / std)


def onnx_outputs(path, images):
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(["features", "logits"], {"images": images.numpy()})]


def torch_outputs(path, images):
    outputs = torch.export.load(path).module()(images)
    return [outputs["features"], outputs["logits"]]


@pytest.mark.parametrize(
    ("arch", "size"), [*NETWORKS, *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)]
)
@pytest.mark.parametrize(("suffix", "outputs"), [(".pt2", torch_outputs), (".onnx", onnx_outputs)])
def test_a_file_computes_what_the_network_does(tmp_path, generator, arch, size, suffix, outputs):
    if suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    weights, path = saved(tmp_path / "model", arch, size), tmp_path / f"network{suffix}"
    told = export_model(weights, path)
    for count in (1, 5):
        images = torch.rand(count, *told.inputs, generator=generator)
        for value, right in zip(outputs(path, images), expected(weights, images), strict=True):
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), right, rtol=1e-4, atol=1e-5)
    assert told.difference < 1e-5
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]


def test_a_pt2_needs_torch_alone_and_says_what_it_is(tmp_path):
    path = tmp_path / "network.pt2"
    told = str(export_model(saved(tmp_path / "model", "convnet-small", 8) / "model.safetensors", path))
    assert told.startswith(f"{path}: images (N, 3, 8, 8) → features (N, 32), logits (N, 3)\n")
    texts = dict.fromkeys(("arch", "classes", "input", "icckd"), "")
    program = torch.export.load(path, extra_files=texts)
    assert (texts["arch"], json.loads(texts["classes"]), texts["icckd"]) == ("convnet-small", CLASSES, __version__)
    assert "[0, 1]" in texts["input"]
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert {operator.namespace for operator in called} == {"aten"}


def test_an_onnx_file_says_what_it_is(tmp_path):
    onnx, path = pytest.importorskip("onnx"), tmp_path / "network.onnx"
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    weights = saved(tmp_path / "model", "signal-convnet-small", [1, 21])
    export_model(weights, path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert texts == metadata(load_model(weights)[1])
    assert json.loads(texts["classes"]) == CLASSES
    assert "as recorded" in texts["input"]
    assert {node.domain for node in model.graph.node} == {""}
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"images": ["batch", 3, 1, 21], "features": ["batch", 32], "logits": ["batch", 3]}


def test_what_differs_from_the_network_is_not_written(tmp_path, monkeypatch):
    weights, path = saved(tmp_path / "model", "convnet-small", 8), tmp_path / "network.pt2"
    write_text(path, "an earlier one")

    def differing(network, description):
        content, run = export._torch_export(network, description)

        def late(images):  # In batches of the last size alone.
            outputs = run(images)
            return {**outputs, "logits": outputs["logits"] + 0.01 * (len(images) == 7)}

        return content, late

    monkeypatch.setitem(export._WRITERS, ".pt2", differing)
    with pytest.raises(UserError, match=r"not written: its logits of 7 random images differ .* by 0\.01, more than"):
        export_model(weights, path)
    assert path.read_text() == "an earlier one"


def test_outputs_that_are_no_numbers_are_not_written(tmp_path, monkeypatch):
    weights, path = saved(tmp_path / "model", "convnet-small", 8), tmp_path / "network.pt2"

    def broken(network, description):
        return b"", lambda images: {name: x * torch.nan for name, x in network(images).items()}

    monkeypatch.setitem(export._WRITERS, ".pt2", broken)
    with pytest.raises(UserError, match="differ from the network's by nan"):
        export_model(weights, path)
    assert not path.exists()


def test_a_network_whose_own_outputs_are_not_finite(tmp_path):
    weights, path = saved(tmp_path / "model", "convnet-small", 8), tmp_path / "network.pt2"
    file = weights / "model.safetensors"
    save_file({name: x * 1e30 if x.is_floating_point() else x for name, x in load_file(file).items()}, file)
    with pytest.raises(UserError, match="not written: the network's own features of random images are not finite"):
        export_model(weights, path)
    assert not path.exists()


def test_a_network_that_pytorch_makes_no_graph_of(tmp_path, monkeypatch):
    weights = saved(tmp_path / "model", "convnet-small", 8)

    def deciding(self, images, stages=()):
        return (images if images.sum() > 0 else -images).mean(dim=(2, 3)), {}

    monkeypatch.setattr(Stages, "forward", deciding)
    with pytest.raises(UserError, match="convnet-small cannot be exported for batches of any size: "):
        export_model(weights, tmp_path / "network.pt2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "icckd export needs --weights PATH"),
        (["--weights", "w"], "icckd export needs --to FILE.onnx or FILE.pt2"),
        (["--weights", "w", "--to", "network.pth"], "--to is network.pth; its name should end in .onnx"),
        (["--weights", "w", "--to", "folder.pt2"], "--to is folder.pt2, which is a folder; give the name of a file"),
        (["--weights", "w", "--to", "a.onnx"], "ONNX needs onnxscript, which is not installed: pip install 'icckd[exp"),
        (["--weights", "w", "--to", "a.pt2"], "w does not exist; give a run's teacher/ folder"),
        (["--seed", "1"], "unrecognized arguments: --seed 1"),
    ],
)
def test_the_command_refuses_in_a_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pt2").mkdir()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnx", sys)
    with pytest.raises(SystemExit) as stopped:
        main(["export", *arguments])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"icckd: error: {message}")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.pt2"]


def test_packages_that_break_are_told_of_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "onnx.py").write_text("raise TypeError('Descriptors cannot be created')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    weights = saved(tmp_path / "model", "convnet-small", 8)
    with pytest.raises(UserError, match=r"onnx, which cannot be imported \(TypeError: Descriptors cannot be created\)"):
        export_model(weights, tmp_path / "network.onnx")


def test_the_command(tmp_path, capsys):
    weights, path = saved(tmp_path / "model", "convnet-small", 8), tmp_path / "network.pt2"
    with pytest.raises(SystemExit) as stopped:
        main(["export", "--weights", str(weights), "--to", str(path)])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert "largest difference from the network's own outputs, of 1, 2 and 7 random images: " in out
    assert path.exists()
