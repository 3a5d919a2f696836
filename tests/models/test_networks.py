"""Every network of this package: how many parameters, how large its maps are, that it can be trained."""

from itertools import pairwise, product

import pytest
import torch

from icckd.errors import UserError
from icckd.models import ARCHITECTURES, build_model

# Parameters with 100 classes and three channels, counted from the published networks.
PARAMETERS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "mobilenetv2_half": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
    "resnet18": 11_220_132,
    "resnet34": 21_328_292,
    "resnet50": 23_705_252,
}
LARGE_PARAMETERS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032}
OWN = ("convnet-large", "convnet-small")
FOR_SIGNALS = ("signal-convnet", "signal-convnet-small")
EVERY = sorted({*PARAMETERS, *OWN})
SMALL = ("resnet8", "wrn_16_1", "wrn_16_2", "vgg8", "mobilenetv2_half", "shufflenetv1", "shufflenetv2", *OWN)


def build(arch, channels=3, classes=7, image_size=8):
    return build_model(arch, channels, classes, image_size)


def count(model):
    return sum(p.numel() for p in model.parameters())


def expected_maps(arch, size):
    """The channels and sizes of a network's stages, and the number of its features, for images of `size` pixels."""

    def halved(times):  # by strided convolutions or pools that keep an odd size's last row
        return -(-size // 2**times)

    if arch.startswith("convnet"):
        widths = (32, 64, 128) if arch == "convnet-large" else (8, 16, 32)
        return [(width, halved(n)) for n, width in enumerate(widths, 1)], widths[-1]
    if arch.startswith("vgg"):
        sizes = (size // 2, size // 4, size // 8, size // 16 if size >= 64 else size // 8)
        return list(zip((128, 256, 512, 512), sizes, strict=True)), 512
    if arch == "mobilenetv2_half":
        return [(width, halved(n)) for n, width in enumerate((12, 16, 48, 160), 1)], 1280
    if arch.startswith("shufflenet"):
        widths, features = ((240, 480, 960), 960) if arch.endswith("1") else ((116, 232, 464), 1024)
        return [(width, halved(n)) for n, width in enumerate(widths, 1)], features
    if arch in LARGE_PARAMETERS:
        widths = [width * (4 if arch == "resnet50" else 1) for width in (64, 128, 256, 512)]
        return [(width, halved(n if size <= 64 else n + 2)) for n, width in enumerate(widths)], widths[-1]
    if arch.startswith("wrn"):
        widths = [width * int(arch[-1]) for width in (16, 32, 64)]
    else:
        widths = (64, 128, 256) if arch.endswith("x4") else (16, 32, 64)
    return [(width, halved(n)) for n, width in enumerate(widths)], widths[-1]


def check_sizes(arch, channels, size, device, batch=2):
    with torch.device(device):
        model = build(arch, channels=channels, classes=5, image_size=size).eval()
        images = torch.randn(batch, channels, size, size)
    with torch.no_grad():
        features, logits, maps = model(images, stages=model.stage_names)
    shapes, feature_dim = expected_maps(arch, size)
    assert model.stage_names == tuple(f"stage{n}" for n in range(1, len(shapes) + 1))
    assert model.feature_dim == feature_dim
    assert features.shape == (batch, feature_dim)
    assert logits.shape == (batch, 5)
    assert [tuple(x.shape) for x in maps.values()] == [(batch, width, side, side) for width, side in shapes]
    return features, logits


def test_architectures_are_complete():
    assert set(ARCHITECTURES) == {*PARAMETERS, *OWN, *FOR_SIGNALS, "timm:NAME"}


@pytest.mark.parametrize(("arch", "parameters"), PARAMETERS.items())
def test_networks_have_the_published_number_of_parameters(arch, parameters):
    with torch.device("meta"):
        assert count(build_model(arch)) == parameters


@pytest.mark.parametrize(("arch", "parameters"), LARGE_PARAMETERS.items())
def test_networks_for_large_images_have_the_published_number_of_parameters(arch, parameters):
    with torch.device("meta"):
        assert count(build_model(arch, classes=1000, image_size=224)) == parameters


def test_the_teacher_is_larger_than_the_student():
    assert count(build("convnet-large")) > 5 * count(build("convnet-small"))


# A deeper network's maps are as large as those of a shallower one of its family.
@pytest.mark.parametrize(
    ("arch", "size"),
    [
        *product((*SMALL, "resnet8x4", "resnet18", "resnet50"), (8, 15, 32, 64, 65, 224)),
        *((arch, 31) for arch in EVERY),
    ],
)
def test_sizes_of_features_and_maps(arch, size):
    check_sizes(arch, 3, size, "meta")


@pytest.mark.slow
@pytest.mark.parametrize("arch", EVERY)
@pytest.mark.parametrize("size", [8, 32, 64, 224])
def test_networks_run_at_every_size(arch, size):
    features, logits = check_sizes(arch, 3, size, "cpu")
    assert features.isfinite().all()
    assert logits.isfinite().all()


@pytest.mark.parametrize("arch", SMALL)
def test_networks_run_on_tiny_grey_images(arch):
    features, logits = check_sizes(arch, 1, 8, "cpu")
    assert (features >= 0).all()
    assert logits.isfinite().all()


@pytest.mark.parametrize("arch", SMALL)
def test_odd_sizes_and_other_channels(arch):
    check_sizes(arch, 2, 9, "cpu", batch=3)


@pytest.mark.parametrize("arch", sorted(set(SMALL) - {"vgg8"}))
def test_a_single_pixel(arch):
    check_sizes(arch, 2, 1, "cpu")


def test_vgg_refuses_images_that_it_cannot_halve_three_times():
    with pytest.raises(UserError, match="image_size is 7; vgg13 halves images three times: it should be 8 or more"):
        build("vgg13", image_size=7)


@pytest.mark.parametrize("arch", SMALL)
def test_every_parameter_gets_a_gradient(arch):
    torch.manual_seed(3)
    model = build(arch, image_size=16)
    features, logits = model(torch.randn(16, 3, 16, 16))
    (features.square().mean() + logits.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # What follows a convolution's bias subtracts the mean, and so the bias.
        assert parameter.grad.abs().max() > 0 or (arch == "vgg8" and name.endswith(".bias")), name


@pytest.mark.parametrize("arch", FOR_SIGNALS)
@pytest.mark.parametrize(("channels", "length"), [(1, 8), (3, 64), (6, 33)])
def test_networks_for_signals(arch, channels, length):
    widths = (32, 64, 128) if arch == "signal-convnet" else (8, 16, 32)
    model = build(arch, channels, image_size=(1, length))
    weights = sum(5 * before * width + 2 * width for before, width in pairwise((channels, *widths)))
    assert count(model) == weights + 7 * (widths[-1] + 1)
    features, logits, maps = model(torch.randn(4, channels, 1, length), stages=model.stage_names)
    assert (features.shape, logits.shape) == ((4, widths[-1]), (4, 7))
    assert [tuple(x.shape) for x in maps.values()] == [
        (4, width, 1, -(-length // 2**n)) for n, width in enumerate(widths, 1)
    ]


@pytest.mark.parametrize("arch", sorted(set(SMALL) - {"vgg8"}))
def test_other_networks_take_signals_too(arch):
    model = build(arch, 3, image_size=(1, 9))
    assert model.training
    assert model.image_shape == (3, 1, 9)
    assert model(torch.randn(4, 3, 1, 9))[1].isfinite().all()


def test_a_network_that_does_not_take_signals_says_so():
    with pytest.raises(UserError, match=r"vgg8 does not take signals or images of 3×1×64 .*; signal-convnet does"):
        build("vgg8", image_size=(1, 64))


@pytest.mark.parametrize("arch", SMALL)
def test_the_seed_determines_the_weights(arch):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build(arch).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_convolutions_start_with_he_initialisation():
    torch.manual_seed(4)
    for module in [*build("resnet32x4").modules(), *build("vgg8").modules()]:
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 50_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
            assert module.bias is None or not module.bias.any()


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


def test_names_of_tensors_that_files_have():
    """Files of earlier versions are read by these names: of resnet8, three blocks, and of convnet-small."""
    blocks = [f"trunk.{n}.convolution{c}.{layer}" for n in (2, 3, 4) for c in (1, 2) for layer in (0, 1)]
    shortcuts = [f"trunk.{n}.shortcut.{layer}" for n in (3, 4) for layer in (0, 1)]
    check_names("resnet8", ["trunk.0.0", "trunk.0.1", *blocks, *shortcuts])
    check_names("convnet-small", [f"trunk.{n}.convolution.{layer}" for n in (0, 1, 2) for layer in (0, 1)])


def check_names(arch, layers):
    convolutions = {f"{layer}.weight" for layer in layers if layer.endswith(".0")}
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    normalisations = {f"{layer}.{part}" for layer in layers if layer.endswith(".1") for part in parts}
    names = convolutions | normalisations | {"classifier.weight", "classifier.bias"}
    assert build(arch).state_dict().keys() == names


def test_blocks_of_residual_networks_are_numbered_through():
    """Of resnet20, three blocks in each stage: the widths by which the numbers in the tensors' names are known."""
    state = build("resnet20").state_dict()
    widths = [state[f"trunk.{n}.convolution1.0.weight"].shape[1] for n in range(2, 11)]
    assert widths == [16, 16, 16, 16, 32, 32, 32, 64, 64]
    assert [a < b for a, b in pairwise(widths)].count(True) == 2
