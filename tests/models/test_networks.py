from itertools import pairwise

import pytest
import torch

from icckd.errors import UserError
from icckd.models import ARCHITECTURES, build_model

MANY_LAYERS = {"resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet32x4"}
FEW_LAYERS = sorted(set(ARCHITECTURES) - MANY_LAYERS)


def build(arch, channels=3, classes=7, image_size=8):
    return build_model(arch, channels=channels, classes=classes, image_size=image_size)


def count(model):
    return sum(p.numel() for p in model.parameters())


def resnet_parameters(depth, widths, channels, classes):
    """Counted block by block from the papers' description: convolutions without bias, two numbers per normalisation."""
    total = channels * 9 * widths[0] + 2 * widths[0]
    for before, width in pairwise(widths):
        for block in range((depth - 2) // 6):
            inputs = before if block == 0 else width
            total += 9 * inputs * width + 2 * width + 9 * width * width + 2 * width
            if block == 0 and (inputs != width or before != widths[0]):
                total += inputs * width + 2 * width
    return total + widths[-1] * classes + classes


def test_architectures_are_complete():
    depths = {f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)}
    assert set(ARCHITECTURES) == depths | {"resnet8x4", "resnet32x4", "convnet-large", "convnet-small"}


@pytest.mark.parametrize(
    ("arch", "millions"),
    [
        ("resnet8", 0.08), ("resnet14", 0.18), ("resnet20", 0.28), ("resnet32", 0.47), ("resnet44", 0.67),
        ("resnet56", 0.86), ("resnet110", 1.74), ("resnet8x4", 1.23), ("resnet32x4", 7.43),
    ],
)  # fmt: skip
def test_residual_networks_have_the_published_number_of_parameters(arch, millions):
    model = build(arch, channels=3, classes=100, image_size=32)
    assert round(count(model) / 1e6, 2) == millions
    depth, _, wide = arch.removeprefix("resnet").partition("x")
    widths = (32, 64, 128, 256) if wide else (16, 16, 32, 64)
    assert count(model) == resnet_parameters(int(depth), widths, 3, 100)


def test_the_teacher_is_larger_than_the_student():
    assert count(build("convnet-large")) > 5 * count(build("convnet-small"))


@pytest.mark.parametrize("arch", FEW_LAYERS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 9), (2, 1), (1, 28)])
def test_any_size_and_number_of_channels(arch, channels, size):
    model = build(arch, channels=channels, classes=5, image_size=size).eval()
    images = torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(size))
    features, logits = model(images)
    assert features.shape == (4, model.feature_dim)
    assert logits.shape == (4, 5)
    assert (features >= 0).all()
    assert torch.equal(logits, model.classifier(features))
    assert (model.arch, model.channels, model.classes, model.image_size) == (arch, channels, 5, size)


@pytest.mark.parametrize("arch", sorted(MANY_LAYERS))
def test_deep_networks_run(arch):
    model = build(arch).eval()
    features, logits = model(torch.randn(2, 3, 8, 8))
    assert (features.shape, logits.shape) == ((2, model.feature_dim), (2, 7))


@pytest.mark.parametrize("arch", FEW_LAYERS)
def test_every_parameter_gets_a_gradient(arch):
    torch.manual_seed(3)
    model = build(arch)
    features, logits = model(torch.randn(16, 3, 8, 8))
    (features.square().mean() + logits.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("arch", FEW_LAYERS)
def test_the_seed_determines_the_weights(arch):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build(arch).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_convolutions_start_with_he_initialisation():
    torch.manual_seed(4)
    for module in build("resnet32x4").modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 50_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)


def test_a_network_learns_to_tell_two_textures_apart():
    torch.manual_seed(5)
    model = build("convnet-small", channels=1, classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)
    labels = torch.arange(32) % 2
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, stripes, stripes.T) + 0.5 * torch.randn(32, 1, 8, 8)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(images)[1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_an_unknown_name_is_refused_with_all_names():
    with pytest.raises(UserError, match=r"arch is 'resnet9'; it should be one of convnet-large, .*resnet8x4"):
        build("resnet9")


@pytest.mark.parametrize("argument", ["channels", "classes", "image_size"])
def test_sizes_below_one_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} is 0"):
        build("resnet8", **{argument: 0})
