import json
from dataclasses import replace

import pytest
import torch

from icckd.errors import UserError
from icckd.models import ModelDescription, build_model, file_digest, load_model, read_description, save_model


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = build_model("convnet-small", channels=1, classes=3, image_size=8)
    save_model(tmp_path, model, ModelDescription("convnet-small", ["a", "b", "c"], 1, 8, [0.5], [0.25]))
    return tmp_path, model


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_round_trip_by_folder_or_file(saved, name):
    folder, model = saved
    loaded, description = load_model(folder / name)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert description.classes == ["a", "b", "c"]
    assert description.parameters == sum(p.numel() for p in model.parameters())
    assert {"icckd", "torch", "python"} <= description.versions.keys()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*does not exist"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_truncated_weights(saved, keep):
    folder, _ = saved
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors does not hold the weights"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["classifier.bias", "trunk.0.convolution.1.running_var"])
def test_weights_that_are_not_finite(saved, name, value):
    folder, model = saved
    model.state_dict()[name][0] = value
    save_model(folder, model, read_description(folder / "model.json"))
    with pytest.raises(UserError, match=rf"model\.safetensors holds numbers that are not finite, in {name}"):
        load_model(folder)


def test_the_digest_is_of_weights_and_description(saved):
    folder, model = saved
    first = file_digest(folder)
    assert file_digest(folder / "model.safetensors") == first
    save_model(folder, model, replace(read_description(folder / "model.json"), mean=[0.25]))
    second = file_digest(folder)
    with torch.no_grad():
        model.classifier.bias[0] += 1
    save_model(folder, model, read_description(folder / "model.json"))
    assert len({first, second, file_digest(folder)}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": "resnet20"}, "does not hold the weights"),
        ({"arch": "no-such-net"}, "no-such-net"),
        ({"arch": 3}, "arch is not a string"),
        ({"classes": ["a"]}, "classes is not a list of two or more names"),
        ({"classes": ["a", "\ud800"]}, "classes is not a list of two or more names"),
        ({"classes": "abc"}, "classes is not a list"),
        ({"channels": 0}, "channels is not a whole number"),
        ({"image_size": 10**9}, "image_size is not a whole number"),
        ({"image_size": [8, 8]}, "image_size is not a whole number in .*, nor .1, a length"),
        ({"image_size": [1, 10**9]}, "nor .1, a length"),
        ({"image_size": [1, 8, 8]}, "nor .1, a length"),
        ({"mean": [0.1, 0.2]}, "mean is not one finite number per channel"),
        ({"mean": [float("nan")]}, "mean is not one finite number per channel"),
        ({"std": [float("inf")]}, "std is not one finite number per channel"),
        ({"std": [0.0]}, "std has a value"),
    ],
)
def test_a_description_that_does_not_fit(saved, change, message):
    folder, _ = saved
    values = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(values | change))
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_a_network_of_signals_comes_back(tmp_path):
    model = build_model("signal-convnet-small", 2, 3, [1, 16]).eval()
    described = ModelDescription("signal-convnet-small", ["a", "b", "c"], 2, [1, 16], [-3.0, 40.0], [2.0, 9.0])
    save_model(tmp_path, model, described)
    loaded, description = load_model(tmp_path)
    assert description == described
    assert loaded.image_shape == (2, 1, 16)
    signals = torch.randn(5, 2, 1, 16)
    assert torch.equal(loaded.eval()(signals)[1], model(signals)[1])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00", "[" * 100_000])
def test_a_description_that_is_none(saved, text):
    folder, _ = saved
    (folder / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json"):
        load_model(folder)
