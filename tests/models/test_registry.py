import sys
from textwrap import dedent

import pytest
import torch

import icckd.models
from icckd.cli.doctor import diagnose
from icckd.errors import UserError
from icckd.models import ARCHITECTURES, build_model, register
from icckd.registry import Registry

FAMILY = """
    from torch import nn
    from icckd.models import Stages, register

    @register("{name}")
    def build(arch, channels, image_size):
        return Stages(6, [[nn.Conv2d(channels, 6, 1)], [nn.ReLU()]])
"""


@pytest.fixture
def fresh(monkeypatch):
    """The registry as it is before it looks for networks; what a test registers is forgotten after it."""
    list(ARCHITECTURES)
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))
    monkeypatch.setattr(ARCHITECTURES, "_problems", [])
    monkeypatch.setattr(ARCHITECTURES, "_loaded", False)


def install(folder, monkeypatch, entry_points):
    """A distribution with these entry points of the group, as pip would leave it, on the path."""
    information = folder / "outside-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (information / "entry_points.txt").write_text("\n".join(["[icckd.models]", *lines, ""]))
    monkeypatch.syspath_prepend(folder)


def test_names_are_in_order_of_their_numbers():
    names = list(ARCHITECTURES)
    assert names.index("resnet8") < names.index("resnet14") < names.index("resnet110")
    assert names.index("vgg8") < names.index("vgg11") < names.index("wrn_16_1") < names.index("wrn_40_1")
    assert len(names) == len(ARCHITECTURES) == len(set(names))


@pytest.mark.parametrize(
    ("name", "there"),
    [("resnet8", True), ("timm:anything", True), ("resnet9", False), ("timm", False), ("resnet8:x", False), (8, False)],
)
def test_which_names_are_in(name, there):
    assert (name in ARCHITECTURES) is there


def test_an_unknown_name_is_refused_with_all_names():
    with pytest.raises(
        UserError, match=r"arch is 'resnet9'; it should be one of convnet-large, .*resnet8x4.*wrn_40_2$"
    ):
        build_model("resnet9")


def test_a_name_that_is_taken():
    registry: Registry[int] = Registry("network", "icckd.models")
    registry.add("one", 1)
    with pytest.raises(ValueError, match="a network named one is registered already: 1"):
        registry.add("one", 2)


def test_a_file_in_the_folder_is_all_that_a_family_takes(fresh, monkeypatch, tmp_path):
    (tmp_path / "newcomer.py").write_text(dedent(FAMILY.format(name="newcomer-net")))
    monkeypatch.setattr(icckd.models, "__path__", [*icckd.models.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "icckd.models.newcomer", raising=False)
    model = build_model("newcomer-net", 2, 3, 4)
    assert "newcomer-net" in list(ARCHITECTURES)
    features, logits, maps = model(torch.randn(5, 2, 4, 4), stages=["stage2"])
    assert (features.shape, logits.shape, maps["stage2"].shape) == ((5, 6), (5, 3), (5, 6, 4, 4))


def test_entry_points_bring_networks_in_and_broken_ones_are_named(fresh, monkeypatch, tmp_path):
    (tmp_path / "outside_net.py").write_text(dedent(FAMILY.format(name="outside-net")))
    (tmp_path / "outside_broken.py").write_text("raise RuntimeError('no such\\nlibrary')\n")
    (tmp_path / "outside_taken.py").write_text(dedent(FAMILY.format(name="resnet20")))
    modules = {"a": "outside_broken", "b": "outside_taken", "c": "outside_net", "lost": "outside_missing"}
    install(tmp_path, monkeypatch, modules)
    assert build_model("outside-net", 1, 3, 4).feature_dim == 6
    assert build_model("resnet20", 1, 3, 8).feature_dim == 64
    with pytest.raises(UserError) as error:
        build_model("lost")
    message = str(error.value)
    assert "outside-net" in message
    assert "; the entry point a = outside_broken cannot be imported (RuntimeError: no such library)" in message
    assert "; the entry point b = outside_taken cannot be imported (ValueError: a network named resnet20 is" in message
    assert "; the entry point lost = outside_missing cannot be imported (ModuleNotFoundError" in message
    assert len(ARCHITECTURES.problems()) == 3
    assert "\n  the entry point a = outside_broken cannot be imported" in diagnose()
    for name in modules.values():
        sys.modules.pop(name, None)


def test_registering_by_a_call(fresh):
    @register("called-net", "called-family:")
    def build(arch, channels, image_size):
        trunk = build_model("convnet-small", channels, 2, image_size).trunk
        trunk.made_for = (arch, channels, image_size)
        return trunk

    assert build_model("called-net", 1, 2, 8).trunk.made_for == ("called-net", 1, 8)
    assert build_model("called-family:x", 3, 2, 9).trunk.made_for == ("called-family:x", 3, 9)
    assert "called-family:NAME" in list(ARCHITECTURES)
