import pytest
import torch
from torch import nn

from icckd.errors import UserError
from icckd.models import Model, Stages, build_model
from icckd.models.model import Trunk

FAMILIES = ("resnet8", "wrn_16_1", "wrn_16_2", "vgg8", "mobilenetv2_half", "shufflenetv1", "shufflenetv2", "resnet18")


class Counting(nn.Module):
    """Adds one, and counts how often."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + 1


def counting_model():
    """A stem, stages of one, two and one layers, and a head: after n layers, n has been added."""
    trunk = Stages(4, [[Counting()], [Counting(), Counting()], [Counting()]], stem=[Counting()], head=[Counting()])
    return Model("counting", trunk, channels=4, classes=3, image_size=2)


def test_attributes():
    model = build_model("resnet8", 1, 5, 9)
    assert (model.arch, model.channels, model.classes, model.image_size) == ("resnet8", 1, 5, 9)
    assert (model.feature_dim, model.stage_names) == (64, ("stage1", "stage2", "stage3"))


def test_defaults_are_those_of_cifar100():
    with torch.device("meta"):
        model = build_model("resnet8")
    assert (model.channels, model.classes, model.image_size) == (3, 100, 32)


def test_stages_in_the_middle_of_the_layers(generator):
    model = counting_model()
    images = torch.randn(2, 4, 2, 2, generator=generator)
    features, logits, maps = model(images, stages=["stage3", "stage1", "stage2"])
    assert list(maps) == ["stage1", "stage2", "stage3"]
    for name, added in (("stage1", 2), ("stage2", 4), ("stage3", 5)):
        torch.testing.assert_close(maps[name], images + added)
    torch.testing.assert_close(features, images.mean(dim=(2, 3)) + 6)
    torch.testing.assert_close(logits, features @ model.classifier.weight.T + model.classifier.bias)
    assert [layer.calls for layer in model.trunk.children()] == [1] * 6


@pytest.mark.parametrize("stages", [(), ("stage2",), ("stage1", "stage3")])
def test_only_the_stages_asked_for(stages):
    answer = counting_model()(torch.zeros(1, 4, 2, 2), stages=stages)
    assert len(answer) == (3 if stages else 2)
    assert not stages or tuple(answer[2]) == stages


def test_maps_alone_end_at_the_last_of_them(generator):
    model = counting_model()
    images = torch.randn(2, 4, 2, 2, generator=generator)
    maps = model.maps(images, ["stage2", "stage1"])
    assert list(maps) == ["stage1", "stage2"]
    torch.testing.assert_close(maps["stage2"], images + 4)
    assert [layer.calls for layer in model.trunk.children()] == [1] * 4 + [0] * 2
    with pytest.raises(UserError, match="counting has no stage 'stage4'; its stages are stage1, stage2, stage3"):
        model.maps(images, ["stage4"])


@pytest.mark.parametrize("arch", [*FAMILIES, "convnet-small"])
def test_maps_alone_are_those_of_the_whole_and_nothing_later_learns(arch):
    torch.manual_seed(2)
    model = build_model(arch, 3, 4, 16)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    whole = model.eval()(images, stages=("stage2",))[2]["stage2"]
    torch.testing.assert_close(model.maps(images, ("stage2",))["stage2"], whole, rtol=0, atol=0)
    model.train().maps(images, ("stage2",))["stage2"].square().sum().backward()
    learnt = {name for name, x in model.named_parameters() if x.grad is not None}
    moved = {name for name, x in model.named_buffers() if name.endswith("num_batches_tracked") and x == 1}
    end = model.trunk.tensor_name("stage3.0.")
    later = {name for name in model.state_dict() if not name.startswith("trunk.") or order(name) >= order(end)}
    assert not later & (learnt | moved)
    assert {name for name, _ in model.named_parameters()} - later == learnt


def order(name):
    """The number of the layer that a tensor belongs to."""
    return int(name.removeprefix("trunk.").partition(".")[0])


@pytest.mark.parametrize("arch", FAMILIES)
def test_maps_change_nothing_and_move_running_statistics_once(arch, generator):
    """Twins train a step, one with maps: the same answers, the same statistics; and the maps keep their values."""
    states, answers = [], []
    for stages in (False, True):
        torch.manual_seed(2)
        model = build_model(arch, 3, 4, 16)
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        features, logits, *maps = model(images, stages=model.stage_names if stages else ())
        states.append(model.state_dict())
        answers.append((features, logits))
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert {int(v) for name, v in states[1].items() if name.endswith("num_batches_tracked")} == {1}
    # Maps that a later layer had changed in place would not be what autograd saved.
    sum(x.square().mean() for x in maps[0].values()).backward()


@pytest.mark.parametrize(
    "arch", ["resnet8", "wrn_16_1", "wrn_16_2", "vgg8", "shufflenetv1", "shufflenetv2", "resnet18"]
)
def test_maps_follow_an_activation(arch):
    model = build_model(arch, 3, 4, 16).eval()
    _, _, maps = model(torch.randn(2, 3, 16, 16), stages=model.stage_names)
    assert all((x >= 0).all() and (x > 0).any() for x in maps.values())


@pytest.mark.parametrize("arch", ["resnet8", "wrn_16_1", "vgg8", "resnet18", "convnet-small"])
def test_features_are_the_last_map_averaged(arch):
    model = build_model(arch, 3, 4, 16).eval()
    features, _, maps = model(torch.randn(2, 3, 16, 16), stages=["stage2", model.stage_names[-1]])
    torch.testing.assert_close(features, maps[model.stage_names[-1]].mean(dim=(2, 3)))


def test_an_unknown_stage_is_refused_with_all_names():
    with pytest.raises(UserError, match="resnet8 has no stage 'stage4'; its stages are stage1, stage2, stage3"):
        build_model("resnet8", 3, 4, 8)(torch.zeros(1, 3, 8, 8), stages=("stage1", "stage4"))


def test_maps_come_through_hooks_and_compilers():
    """What FSDP and DDP hang on the module sees the call, and a compiler finds one graph in it."""
    model = build_model("convnet-small", 1, 3, 8).eval()
    images = torch.randn(2, 1, 8, 8)
    expected = model(images, stages=("stage2",))
    seen = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(images, stages=("stage2",))
    handle.remove()
    assert torch.equal(seen[0][2]["stage2"], expected[2]["stage2"])
    compiled = torch.compile(model, backend="eager", fullgraph=True)(images, stages=("stage2",))
    torch.testing.assert_close(compiled, expected)


def test_where_a_tensor_lies():
    trunk = counting_model().trunk
    places = ("stem.0.weight", "stage1.0.a.b", "stage2.0.bias", "stage2.1.bias", "stage3.0.x", "head.0.x")
    assert [trunk.tensor_name(place) for place in places] == ["0.weight", "1.a.b", "2.bias", "3.bias", "4.x", "5.x"]
    for nowhere in ("stage2.2.bias", "stage4.0.bias", "stage2.-1.x", "stage1", "stem.x.y", "0.weight"):
        assert trunk.tensor_name(nowhere) == nowhere


def test_maps_of_a_trunk_that_says_no_more_are_those_beside_its_features():
    class Own(Trunk):
        def __init__(self):
            super().__init__()
            self.feature_dim, self.stage_names = 3, ("stage1", "stage2")

        def forward(self, images, stages=()):
            return images.mean((2, 3)), {name: images + 1 for name in stages}

    images = torch.randn(2, 3, 2, 2)
    maps = Model("own", Own(), channels=3, classes=2, image_size=2).maps(images, ("stage2",))
    assert list(maps) == ["stage2"]
    assert torch.equal(maps["stage2"], images + 1)


def test_a_trunk_keeps_the_weights_that_it_was_made_with():
    class Own(Trunk):
        def __init__(self):
            super().__init__()
            self.feature_dim, self.stage_names = 2, ()
            self.layer = nn.Conv2d(3, 2, 1)

    trunk = Own()
    before = trunk.layer.weight.clone()
    trunk.initialise()
    assert torch.equal(trunk.layer.weight, before)


@pytest.mark.parametrize("argument", ["channels", "classes", "image_size"])
@pytest.mark.parametrize("value", ["3", 8.0, None, True])
def test_sizes_that_are_no_integers_are_refused(argument, value):
    with pytest.raises(TypeError, match=f"{argument} is {value!r}; it should be an integer"):
        build_model("resnet8", **{argument: value})


@pytest.mark.parametrize("argument", ["channels", "classes", "image_size"])
def test_sizes_below_one_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} is 0"):
        build_model("resnet8", **{argument: 0})
