"""timm's networks, where timm is installed; and what is said where it is not."""

import sys

import pytest
import torch

from icckd.errors import UserError
from icckd.models import build_model


@pytest.fixture
def timm():
    """Beside a torchvision that does not fit torch, timm fails to import with other errors than ImportError."""
    try:
        import timm
    except Exception as error:
        pytest.skip(f"timm cannot be imported: {error}")
    return timm


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"'timm:resnet18', which needs timm, .* pip install 'icckd\[timm\]'$"):
        build_model("timm:resnet18")


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_features_logits_and_maps(name, timm):
    torch.manual_seed(0)
    model = build_model(f"timm:{name}", channels=1, classes=7, image_size=32).eval()
    images = torch.randn(2, 1, 32, 32)
    features, logits = model(images)
    assert (features.shape, logits.shape) == ((2, model.feature_dim), (2, 7))
    torch.testing.assert_close(logits, model.classifier(features))
    again, _, maps = model(images, stages=model.stage_names)
    torch.testing.assert_close(again, features)
    assert list(maps) == list(model.stage_names)
    network = timm.create_model(name, in_chans=1, num_classes=0, **({"img_size": 32} if "vit" in name else {})).eval()
    network.load_state_dict(model.trunk.network.state_dict())
    torch.testing.assert_close(features, network(images))
    for own, intermediate in zip(maps.values(), network.forward_intermediates(images)[1], strict=True):
        torch.testing.assert_close(own, intermediate)
    assert list(model(images, stages=("stage2",))[2]) == ["stage2"]
    alone = model.maps(images, ("stage1", "stage2"))
    assert list(alone) == ["stage1", "stage2"]
    assert all(torch.equal(alone[stage], maps[stage]) for stage in alone)


def test_running_statistics_move_once(timm):
    torch.manual_seed(0)
    model = build_model("timm:resnet18", 3, 5, 32)
    model(torch.randn(4, 3, 32, 32), stages=("stage1", "stage4"))
    counts = {int(v) for name, v in model.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {1}


def test_maps_alone_leave_later_statistics_where_they_were(timm):
    model = build_model("timm:resnet18", 3, 5, 32)
    model.maps(torch.randn(4, 3, 32, 32), ("stage2",))
    counts = {name: int(v) for name, v in model.state_dict().items() if name.endswith("num_batches_tracked")}
    run = ("trunk.network.bn1.", "trunk.network.layer1.")  # timm counts its stem as the first stage.
    assert {name for name, count in counts.items() if count} == {name for name in counts if name.startswith(run)}


def test_an_unknown_network_is_refused(timm):
    with pytest.raises(UserError, match=r"timm has no network resnt18, .*did you mean resnet18"):
        build_model("timm:resnt18")
    with pytest.raises(UserError, match="timm has no network hf-hub:some/model"):
        build_model("timm:hf-hub:some/model")


def test_a_size_that_a_network_does_not_take(timm):
    with pytest.raises(UserError, match="timm's inception_v3 does not take 3 channels of 32 pixels: "):
        build_model("timm:inception_v3", 3, 5, 32)
