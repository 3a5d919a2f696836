"""`Model`, which every network is: a trunk of stages and a linear classifier; `build_model` makes one by name."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from icckd.errors import UserError, reason
from icckd.models.registry import ARCHITECTURES


class Trunk(nn.Module):
    """A network before its classifier: float images (B, channels, H, W) → features (B, feature_dim) and maps of stages.

    `stage_names` are its stages in order, stage1, stage2 and so on; what comes before the first, the stem, is none of
    them. A stage's map is its output (B, C, h, w) after its last activation.
    """

    feature_dim: int
    stage_names: tuple[str, ...]

    def forward(self, images: Tensor, stages: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        """The features, and the maps of `stages`, each a name in `stage_names`, by name."""
        raise NotImplementedError

    def maps(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        """The maps of one or more `stages` alone, without what comes after the last of them; by default that runs too.

        Where it runs, running statistics move.
        """
        return self(images, stages)[1]

    def layers(self) -> list[nn.Module]:
        """The modules that its forward calls one after another, so far as they can be told; by default none."""
        return []

    def initialise(self) -> None:
        """Draw the weights anew; by default those that the modules were made with stay."""

    def tensor_name(self, place: str) -> str:
        """What `state_dict` calls the tensor at `place`, which other projects' state dicts are renamed to."""
        return place


class Stages(Trunk):
    """Layers in order: those of the stem, of each stage, and of a head; the last map is averaged over positions.

    The layers are numbered through, as in `nn.Sequential`, and these numbers are in the names of the tensors.
    """

    def __init__(
        self,
        feature_dim: int,
        stages: Sequence[Sequence[nn.Module]],
        stem: Sequence[nn.Module] = (),
        head: Sequence[nn.Module] = (),
    ):
        super().__init__()
        self.feature_dim = feature_dim
        self.stage_names = tuple(f"stage{number}" for number in range(1, len(stages) + 1))
        self._parts: dict[str, range] = {}
        for name, layers in zip(("stem", *self.stage_names, "head"), (stem, *stages, head), strict=True):
            start = len(self._modules)
            for number, layer in enumerate(layers, start):
                self.add_module(str(number), layer)
            self._parts[name] = range(start, len(self._modules))
        self._ends = {self._parts[name][-1]: name for name in self.stage_names}

    def forward(self, images: Tensor, stages: Sequence[str] = ()) -> tuple[Tensor, dict[str, Tensor]]:
        x, maps = self._run(self.layers(), images, stages)
        return x.mean(dim=(2, 3)), maps

    def maps(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        last = max(number for number, name in self._ends.items() if name in stages)
        return self._run(self.layers()[: last + 1], images, stages)[1]

    def _run(self, layers: Sequence[nn.Module], x: Tensor, stages: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the first `layers` make of `x`, and the maps of `stages`."""
        maps = {}
        for number, layer in enumerate(layers):
            x = layer(x)
            if stages and self._ends.get(number) in stages:
                maps[self._ends[number]] = x
        return x, maps

    def layers(self) -> list[nn.Module]:
        return list(self.children())

    def tensor_name(self, place: str) -> str:
        """`stage2.0.weight` is of the second stage's first layer, whose number it gets; others stay as they are."""
        part, _, rest = place.partition(".")
        layer, _, name = rest.partition(".")
        layers = self._parts.get(part, range(0))
        return f"{layers[int(layer)]}.{name}" if layer.isdecimal() and int(layer) < len(layers) else place

    def initialise(self) -> None:
        """Convolutions are drawn from He et al.'s normal distribution (fan-out), their biases are 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                # With weights in this order, and so outputs too, a CPU's convolutions are up to twice as fast.
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


class Model(nn.Module):
    """A classifier: `trunk`, then `classifier`, a linear layer, on the trunk's features.

    `image_size`, pixels a side or (height, width), says which images the model is meant for; most networks take any.
    `image_shape` is channels, height and width of these, and the attribute `image_size` the longer side. Where
    `detaches_features` is set the gradient of the logits stops at the features: the classifier learns, and the trunk
    does not learn from it.
    """

    detaches_features = False

    def __init__(self, arch: str, trunk: Trunk, channels: int, classes: int, image_size: int | Sequence[int]):
        super().__init__()
        self.arch = arch
        self.channels = channels
        self.classes = classes
        self.image_shape = (channels, *sides(image_size))
        self.image_size = max(sides(image_size))
        self.feature_dim = trunk.feature_dim
        self.stage_names = trunk.stage_names
        self.trunk = trunk
        self.classifier = nn.Linear(trunk.feature_dim, classes)

    def forward(
        self, images: Tensor, stages: Sequence[str] = ()
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Float images (B, channels, H, W) → features (B, feature_dim), which are classified, and logits (B, classes).

        With `stages`, names from `stage_names`, also a dictionary of these stages' maps (B, C, h, w), each taken where
        it is computed: no module runs twice. Raises UserError for a stage that the network does not have.
        """
        if not stages:
            features, _ = self.trunk(images)
            return features, self._logits(features)
        self._check_stages(stages)
        features, maps = self.trunk(images, stages)
        return features, self._logits(features), maps

    def maps(self, images: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        """The maps of one or more `stages` alone, as above; what comes after the last of them is not run.

        The networks of other packages may run it all the same (`Trunk.maps`).
        """
        self._check_stages(stages)
        return self.trunk.maps(images, stages)

    def _check_stages(self, stages: Sequence[str]) -> None:
        unknown = [name for name in stages if name not in self.stage_names]
        if unknown:
            raise UserError(f"{self.arch} has no stage {unknown[0]!r}; its stages are {', '.join(self.stage_names)}")

    def _logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(features.detach() if self.detaches_features else features)
        return logits


def sides(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of images of `image_size`: pixels a side, or both."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def build_model(arch: str, channels: int = 3, classes: int = 100, image_size: int | Sequence[int] = 32) -> Model:
    """A new network with random weights, determined by `torch.manual_seed`, for images of `image_size`.

    That is pixels a side, or (height, width); signals are images of height 1. Normalisations start as the identity.
    Raises UserError for an `arch` that is not in `ARCHITECTURES` or cannot take such images, TypeError where
    `channels`, `classes` or `image_size` is no integer, ValueError where below 1.
    """
    build = ARCHITECTURES.find(arch, "arch").build
    lengths = image_size if isinstance(image_size, Sequence) and len(image_size) == 2 else (image_size,)
    for name, value in (("channels", channels), ("classes", classes), *(("image_size", side) for side in lengths)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}; it should be an integer")
        if value < 1:
            raise ValueError(f"{name} is {value}; it should be 1 or more")
    trunk = build(arch, channels, max(sides(image_size)))
    model = Model(arch, trunk, channels, classes, image_size)
    model.trunk.initialise()
    if not isinstance(image_size, int):
        _try(model)
    return model


def _try(model: Model) -> None:
    """Raise UserError where `model` cannot take the images that it is meant for: layers may want square ones."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *model.image_shape))
    except Exception as error:  # Of any kind: it is the network's own.
        shape = "×".join(map(str, model.image_shape))
        raise UserError(
            f"{model.arch} does not take signals or images of {shape} ({reason(error)}); signal-convnet does"
        ) from error
    finally:
        model.train()


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first of a network's tensors that holds a number that is not finite, and how many more do; "" for none."""
    if not tensors:
        return ""
    # Stacked, so that a GPU is waited for once.
    finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()]).tolist()
    names = [name for name, right in zip(tensors, finite, strict=True) if not right]
    return "".join(names[:1]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
