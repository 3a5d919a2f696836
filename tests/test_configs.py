"""The ready-made configurations: each is read, its values are right, and it is what its name says."""

from pathlib import Path

import pytest
import yaml

from icckd.models import ARCHITECTURES
from icckd.settings import check, flat, read_comparison, settings_from

CONFIGS = Path(__file__).parent.parent / "configs"
COMPARISONS = sorted(
    path for kind in ("claim", "compare", "paper", "neighbours") for path in (CONFIGS / kind).rglob("*.yaml")
)
# The pairs of networks whose students the literature's tables list.
PAIRS = {
    *("resnet32x4-resnet8x4", "wrn_40_2-wrn_16_2", "resnet56-resnet20", "vgg13-vgg8"),
    *("resnet50-mobilenetv2_half", "resnet32x4-shufflenetv1", "resnet32x4-shufflenetv2"),
}


def named(path):
    return str(path.relative_to(CONFIGS))


def given(path):
    """The settings that a comparison's file gives each of its variants, by dotted name."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: flat(values["base"]) | flat(own) for name, own in values["variants"].items()}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=named)
def test_a_run_is_read(path):
    check(settings_from(yaml.safe_load(path.read_text(encoding="utf-8")), str(path)))


@pytest.mark.parametrize("path", COMPARISONS, ids=named)
def test_a_comparison_is_read(path):
    comparison = read_comparison(path)
    assert len(comparison.seeds) >= 3
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"configs/{named(path)} " in line for line in comments)
    for settings in comparison.variants.values():
        check(settings)
        for network in (settings.teacher.arch, settings.student.arch):
            ARCHITECTURES.find(network, "arch")


@pytest.mark.parametrize("folder", ["cifar100", "tiny-imagenet-32", "tiny-imagenet-64"])
def test_every_pair_of_the_literature_has_its_file(folder):
    paths = {path.stem: path for path in (CONFIGS / "paper" / folder).glob("*.yaml")}
    assert set(paths) == PAIRS
    for pair, path in paths.items():
        for name, settings in given(path).items():
            size = f"-{settings['data.image_size']}" if "data.image_size" in settings else ""
            assert f"{settings['data.name']}{size}" == folder
            assert f"{settings['teacher.arch']}-{settings['student.arch']}" == pair
            assert settings["preset"] == "paper"
            assert (settings["teacher.loss.weight"] > 0) == name.startswith("ours")
            assert settings.get("student.loss.method", "kd") == ("kd+rkd" if name.endswith("rkd") else "kd")


def test_ablations_differ_in_what_they_ask_about():
    asked = {
        "weight": {"teacher.loss.weight"},
        "margin": {"teacher.loss.margin"},
        "margin-space": {"teacher.loss.margin", "teacher.loss.margin_space"},
        "memory": {"teacher.memory.capacity"},
        "temperature": {"teacher.loss.temperature"},
        "budget": {"teacher.loss.weight", "teacher.epochs", "teacher.loss.cross_entropy_views"},
        "students": {"teacher.loss.weight", "student.loss.method"},
    }
    for name, settings in asked.items():
        variants = given(CONFIGS / "compare" / f"cifar100-{name}.yaml").values()
        named = {setting for of in variants for setting in of}
        assert {setting for setting in named if len({of.get(setting) for of in variants}) > 1} == settings
