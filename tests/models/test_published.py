"""Other projects' state dicts, of networks written out here once more: by their tensors' names, in plain functions."""

import argparse
from pathlib import Path

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, batch_norm, conv2d, linear, max_pool2d, relu

from icckd.errors import UserError
from icckd.models import ModelDescription, file_digest, is_state_dict, load_model, save_model

CLASSES = 5


class Published:
    """A network by the names of its tensors: each is drawn when it is first met, and used in float64."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors = {}

    def tensor(self, name, draw):
        if name not in self.tensors:
            self.tensors[name] = draw()
        return self.tensors[name].double()

    def normal(self, *shape, scale=1.0):
        return scale * torch.randn(*shape, generator=self.generator)

    def positive(self, *shape):
        return 0.5 + torch.rand(*shape, generator=self.generator)

    def convolution(self, name, x, width, size=3, stride=1, groups=1, bias=False):
        inputs = x.shape[1] // groups
        scale = (2 / (inputs * size * size)) ** 0.5
        weight = self.tensor(f"{name}.weight", lambda: self.normal(width, inputs, size, size, scale=scale))
        offset = self.tensor(f"{name}.bias", lambda: self.normal(width)) if bias else None
        return conv2d(x, weight, offset, stride, size // 2, groups=groups)

    def normalise(self, name, x):
        width = x.shape[1]
        weight = self.tensor(f"{name}.weight", lambda: self.positive(width))
        bias = self.tensor(f"{name}.bias", lambda: self.normal(width))
        mean = self.tensor(f"{name}.running_mean", lambda: self.normal(width))
        variance = self.tensor(f"{name}.running_var", lambda: self.positive(width))
        self.tensor(f"{name}.num_batches_tracked", lambda: torch.tensor(7))
        return batch_norm(x, mean, variance, weight, bias)

    def classify(self, name, features):
        weight = self.tensor(f"{name}.weight", lambda: self.normal(CLASSES, features.shape[1], scale=0.1))
        return linear(features, weight, self.tensor(f"{name}.bias", lambda: self.normal(CLASSES)))

    def answer(self, name, x, maps):
        features = adaptive_avg_pool2d(x, 1).flatten(1)
        return features, self.classify(name, features), maps


def residual_stages(net, x, blocks, widths, expansion=1, shortcut="downsample"):
    maps = []
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y, sizes = x, [(3, stride), (3, 1)] if expansion == 1 else [(1, 1), (3, stride), (1, 1)]
            for n, (size, step) in enumerate(sizes, 1):
                wide = width * expansion if n == len(sizes) else width
                y = net.normalise(f"{name}.bn{n}", net.convolution(f"{name}.conv{n}", y, wide, size, step))
                y = relu(y) if n < len(sizes) else y
            if block == 0 and (stride > 1 or x.shape[1] != width * expansion):
                x = net.convolution(f"{name}.{shortcut}.0", x, width * expansion, 1, stride)
                x = net.normalise(f"{name}.{shortcut}.1", x)
            x = relu(x + y)
        maps.append(x)
    return x, maps


def resnet(net, x, depth, widths):
    x = relu(net.normalise("bn1", net.convolution("conv1", x, widths[0])))
    x, maps = residual_stages(net, x, [(depth - 2) // 6] * 3, widths[1:])
    return net.answer("fc", x, maps)


def small_imagenet_resnet(net, x, blocks, expansion):
    x = relu(net.normalise("bn1", net.convolution("conv1", x, 64)))
    x, maps = residual_stages(net, x, blocks, (64, 128, 256, 512), expansion, "shortcut")
    return net.answer("linear", x, maps)


def imagenet_resnet(net, x, blocks, expansion):
    x = relu(net.normalise("bn1", net.convolution("conv1", x, 64, 7, 2)))
    x = max_pool2d(x, 3, 2, 1)
    x, maps = residual_stages(net, x, blocks, (64, 128, 256, 512), expansion)
    return net.answer("fc", x, maps)


def wide_resnet(net, x, depth, widening):
    x = net.convolution("conv1", x, 16)
    maps = []
    for stage, width in enumerate((16 * widening, 32 * widening, 64 * widening), 1):
        for block in range((depth - 4) // 6):
            name = f"block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            activated = relu(net.normalise(f"{name}.bn1", x))
            if stage > 1 and block == 0:
                maps.append(activated)
            y = relu(net.normalise(f"{name}.bn2", net.convolution(f"{name}.conv1", activated, width, 3, stride)))
            y = net.convolution(f"{name}.conv2", y, width)
            changes = x.shape[1] != width
            x = y + (net.convolution(f"{name}.convShortcut", activated, width, 1, stride) if changes else x)
    x = relu(net.normalise("bn1", x))
    return net.answer("fc", x, [*maps, x])


def vgg(net, x, counts):
    size, maps = x.shape[2], []
    for block, (count, width) in enumerate(zip(counts, (64, 128, 256, 512, 512), strict=True)):
        if 1 <= block <= 3 or (block == 4 and size == 64):
            x = max_pool2d(x, 2)
        for n in range(count):
            x = net.convolution(f"block{block}.{3 * n}", x, width, bias=True)
            x = relu(net.normalise(f"block{block}.{3 * n + 1}", x))
        maps.append(x)
    return net.answer("classifier", x, maps[1:])


def mobilenet(net, x):
    x = relu(net.normalise("conv1.1", net.convolution("conv1.0", x, 16, 3, 2)))
    outputs = []
    groups = [(1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1)]
    for group, (expansion, width, count, stride) in enumerate(groups):
        for block in range(count):
            name, inside, step = f"blocks.{group}.{block}.conv", x.shape[1] * expansion, stride if block == 0 else 1
            y = relu(net.normalise(f"{name}.1", net.convolution(f"{name}.0", x, inside, 1)))
            y = relu(net.normalise(f"{name}.4", net.convolution(f"{name}.3", y, inside, 3, step, groups=inside)))
            y = net.normalise(f"{name}.7", net.convolution(f"{name}.6", y, width, 1))
            x = x + y if step == 1 and x.shape[1] == width else y
        outputs.append(x)
    x = relu(net.normalise("conv2.1", net.convolution("conv2.0", x, 1280, 1)))
    return net.answer("classifier.0", x, [outputs[n] for n in (1, 2, 4, 6)])


def shuffled(x, groups):
    order = torch.arange(x.shape[1]).reshape(groups, -1).T.flatten()
    return x[:, order]


def shufflenet1(net, x):
    x = relu(net.normalise("bn1", net.convolution("conv1", x, 24, 1)))
    maps = []
    for stage, (width, count) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
        for block in range(count):
            name, first = f"layer{stage}.{block}", block == 0
            own = width - x.shape[1] if first else width
            groups = 1 if x.shape[1] == 24 else 3
            y = relu(net.normalise(f"{name}.bn1", net.convolution(f"{name}.conv1", x, own // 4, 1, groups=groups)))
            y = net.convolution(f"{name}.conv2", shuffled(y, groups), own // 4, 3, 2 if first else 1, own // 4)
            y = relu(net.normalise(f"{name}.bn2", y))
            y = net.normalise(f"{name}.bn3", net.convolution(f"{name}.conv3", y, own, 1, groups=3))
            x = relu(torch.cat([y, avg_pool2d(x, 3, 2, 1)], 1) if first else x + y)
        maps.append(x)
    return net.answer("linear", x, maps)


def shufflenet2(net, x):
    def unit(name, n, x, width, stride=1, depthwise=False):
        size, groups = (3, width) if depthwise else (1, 1)
        return net.normalise(f"{name}.bn{n}", net.convolution(f"{name}.conv{n}", x, width, size, stride, groups))

    x = relu(net.normalise("bn1", net.convolution("conv1", x, 24, 1)))
    maps = []
    for stage, (width, count) in enumerate(((116, 4), (232, 8), (464, 4)), 1):
        half = width // 2
        for block in range(count):
            name = f"layer{stage}.{block}"
            if block == 0:
                left = relu(unit(name, 2, unit(name, 1, x, x.shape[1], 2, True), half))
                right = relu(unit(name, 3, x, half))
                right = relu(unit(name, 5, unit(name, 4, right, half, 2, True), half))
            else:
                left, right = x[:, :half], x[:, half:]
                right = relu(unit(name, 1, right, half))
                right = relu(unit(name, 3, unit(name, 2, right, half, 1, True), half))
            x = shuffled(torch.cat([left, right], 1), 2)
        maps.append(x)
    x = relu(net.normalise("bn2", net.convolution("conv2", x, 1024, 1)))
    return net.answer("linear", x, maps)


# For each network: how it is computed, with what, and the size of images.
NETWORKS = {
    "resnet14": (resnet, (14, (16, 16, 32, 64)), 12),
    "resnet8x4": (resnet, (8, (32, 64, 128, 256)), 9),
    "wrn_16_1": (wide_resnet, (16, 1), 12),
    "wrn_16_2": (wide_resnet, (16, 2), 12),
    "vgg8": (vgg, ((1, 1, 1, 1, 1),), 16),
    "vgg11": (vgg, ((1, 1, 2, 2, 2),), 16),
    "vgg8 of 64 pixels": (vgg, ((1, 1, 1, 1, 1),), 64),
    "mobilenetv2_half": (mobilenet, (), 32),
    "shufflenetv1": (shufflenet1, (), 16),
    "shufflenetv2": (shufflenet2, (), 16),
    "resnet18": (small_imagenet_resnet, ((2, 2, 2, 2), 1), 9),
    "resnet50": (small_imagenet_resnet, ((3, 4, 6, 3), 4), 8),
    "resnet18 of 65 pixels": (imagenet_resnet, ((2, 2, 2, 2), 1), 65),
}
LONG = {
    "resnet110": (resnet, (110, (16, 16, 32, 64)), 12),
    "resnet32x4": (resnet, (32, (32, 64, 128, 256)), 12),
    "wrn_40_1": (wide_resnet, (40, 1), 12),
    "wrn_40_2": (wide_resnet, (40, 2), 12),
    "vgg13": (vgg, ((2, 2, 2, 2, 2),), 16),
    "vgg16": (vgg, ((2, 2, 3, 3, 3),), 16),
    "vgg19": (vgg, ((2, 2, 4, 4, 4),), 16),
    "resnet34": (small_imagenet_resnet, ((3, 4, 6, 3), 1), 16),
    "resnet50 of 224 pixels": (imagenet_resnet, ((3, 4, 6, 3), 4), 224),
}


def described_as(arch, size, classes=CLASSES):
    return ModelDescription(arch, [str(n) for n in range(classes)], 3, size, [0.5] * 3, [0.25] * 3)


def publish(network, seed=0):
    """A published network's tensors, images, and its features, logits and maps of them."""
    compute, arguments, size = (NETWORKS | LONG)[network]
    net = Published(seed)
    images = torch.randn(2, 3, size, size, generator=net.generator, dtype=torch.float64)
    return net.tensors, images, compute(net, images, *arguments)


@pytest.mark.parametrize("network", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def test_a_published_network_gives_the_same_answers(network, tmp_path):
    tensors, images, (features, logits, maps) = publish(network)
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save({"epoch": 240, "model": tensors, "accuracy": torch.tensor(71.5), "optimizer": {"state": {}}}, path)
    description = described_as(network.split()[0], images.shape[2])
    model, same = load_model(path, description)
    assert same is description
    own = model.double().eval()(images, stages=model.stage_names)
    torch.testing.assert_close(own[:2], (features, logits), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(list(own[2].values()), maps, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def tensors():
    """Those of a published resnet8: as its files hold them."""
    return {name: tensor.clone() for name, tensor in publish_resnet8().items()}


def publish_resnet8():
    net = Published(3)
    resnet(net, torch.zeros(1, 3, 8, 8, dtype=torch.float64), 8, (16, 16, 32, 64))
    return net.tensors


def load(path, content, arch="resnet8", size=8, classes=CLASSES):
    torch.save(content, path)
    return load_model(path, described_as(arch, size, classes))[0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": tensors, "epoch": 3, "best_acc1": 0.5, "name": "x", "list": [1, None]},
        lambda tensors: {"net": tensors, "acc": 93.1},
        lambda tensors: {"model": {f"module.{name}": tensor for name, tensor in tensors.items()}},
        lambda tensors: {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")},
        lambda tensors: {name: t.half().float() for name, t in tensors.items() if t.is_floating_point()},
    ],
)
def test_where_a_state_dict_lies(wrap, tensors, tmp_path):
    model = load(tmp_path / "net.pt", wrap(tensors))
    torch.testing.assert_close(model.classifier.weight, tensors["fc.weight"], rtol=1e-3, atol=1e-3)


def test_the_older_format_of_files(tensors, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    model, _ = load_model(path, described_as("resnet8", 8))
    assert torch.equal(model.classifier.weight, tensors["fc.weight"])


def make(path):
    Path(path).touch()


class Harmful:
    """An object that makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return make, (self.path,)


def test_pickled_objects_are_refused_and_nothing_runs(tensors, tmp_path):
    path, made = tmp_path / "resnet8_last.pth", tmp_path / "made"
    with pytest.raises(UserError, match=r"resnet8_last\.pth holds a pickled argparse\.Namespace beside its tensors"):
        load(path, {"opt": argparse.Namespace(lr=0.1), "model": tensors})
    with pytest.raises(UserError, match=rf"resnet8_last\.pth holds a pickled {__name__}\.make beside"):
        load(path, {"model": tensors, "opt": Harmful(str(made))})
    assert not made.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken", bytes(range(256)) * 8])
def test_files_that_are_none(content, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"net\.pth (is not a file of tensors that torch\.save wrote|holds a pickled)"):
        load_model(path, described_as("resnet8", 8))


def test_a_truncated_file(tensors, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"net\.pth is not a file of tensors"):
        load_model(path, described_as("resnet8", 8))


@pytest.mark.parametrize(
    "content", [{}, [1, 2], 3, torch.zeros(3), {"model": {"a": 1}}, {"model": []}, {3: torch.ones(1)}]
)
def test_files_without_a_state_dict(content, tmp_path):
    with pytest.raises(UserError, match="holds no state dict, neither by itself nor under model, state_dict, net"):
        load(tmp_path / "net.pth", content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layer2.0.bn1.running_var"), r"it lacks 1 of 56 tensors, trunk\.3\.convolution1"),
        (lambda t: t.update({"layer4.0.conv1.weight": torch.ones(3)}), r"it has no place for layer4\.0\.conv1\.weight"),
        # resnet8 has one block in each stage; the second would be the next stage's first.
        (lambda t: t.update({"layer1.1.bn1.bias": torch.ones(32)}), r"it has no place for layer1\.1\.bn1\.bias"),
        # Two names for one tensor.
        (lambda t: t.update({"linear.bias": torch.ones(CLASSES)}), r"it has no place for linear\.bias"),
        (lambda t: t.update({"fc.bias": torch.ones(7)}), r"fc\.bias is of shape \(7,\) instead of \(5,\)"),
        (lambda t: t.update({"fc.bias": torch.ones(5).int()}), r"fc\.bias is of torch\.int32 instead of torch\.float"),
        (lambda t: t.update({"fc.bias": torch.ones(5).cfloat()}), r"fc\.bias is of torch\.complex64"),
        (lambda t: t.update({"fc.bias": torch.ones(5).to_sparse()}), r"fc\.bias is not a plain tensor"),
        (lambda t: t.update({"fc.bias": torch.ones(5, device="meta")}), r"fc\.bias is not a plain tensor"),
    ],
)  # fmt: skip
def test_state_dicts_that_do_not_fit(change, message, tensors, tmp_path):
    changed = dict(tensors)
    change(changed)
    with pytest.raises(UserError, match=rf"of a resnet8 for 5 classes and 3 channels of 8 pixels: {message}"):
        load(tmp_path / "net.pth", changed)


@pytest.mark.parametrize(
    ("arch", "size", "classes", "message"),
    [
        ("resnet8", 8, 4, r"fc\.weight is of shape \(5, 64\) instead of \(4, 64\)"),
        ("resnet14", 8, 5, "it lacks "),
        ("resnet8x4", 8, 5, r"conv1\.weight is of shape"),
        ("resnet18", 8, 5, r"conv1\.weight is of shape"),
        ("wrn_16_1", 8, 5, r"bn1\.weight is of shape \(16,\) instead of \(64,\)"),
        ("vgg8", 128, 5, "vgg8 of other projects pools a fourth time at 64 pixels only; image_size is 128"),
        ("convnet-small", 8, 5, "cannot be read as a convnet-small: no state dicts of other projects are known of it"),
    ],
)
def test_a_description_of_another_network(arch, size, classes, message, tensors, tmp_path):
    with pytest.raises(UserError, match=message):
        load(tmp_path / "net.pth", tensors, arch, size, classes)


def test_numbers_that_are_not_finite(tensors, tmp_path):
    with pytest.raises(UserError, match=r"net\.pth holds numbers that are not finite, in classifier\.bias"):
        load(tmp_path / "net.pth", tensors | {"fc.bias": torch.full((5,), torch.nan)})


def test_a_state_dict_needs_a_description(tensors, tmp_path):
    path = tmp_path / "student_best"
    torch.save({"model": tensors}, path)
    assert is_state_dict(path)
    with pytest.raises(UserError, match="student_best is another project's file, which does not say what network"):
        load_model(path)


def test_own_files_keep_their_description(tensors, tmp_path):
    model = load(tmp_path / "net.pth", tensors)
    digest = file_digest(tmp_path / "net.pth")
    save_model(tmp_path / "own", model, described_as("resnet8", 8))
    assert not is_state_dict(tmp_path / "own")
    assert not is_state_dict(tmp_path / "own" / "model.safetensors")
    again, description = load_model(tmp_path / "own", described_as("resnet14", 9, 7))
    assert (again.arch, description.arch, len(description.classes)) == ("resnet8", "resnet8", 5)
    assert torch.equal(again.classifier.weight, tensors["fc.weight"])
    torch.save({"model": tensors, "epoch": 1}, tmp_path / "net.pth")
    assert len({digest, file_digest(tmp_path / "net.pth"), file_digest(tmp_path / "own")}) == 3
