"""What a task is: networks to ask about a batch, and losses of what they say."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from icckd.data import Batch
from icckd.methods import Network, Outputs, Samples
from icckd.models import Model


class Task(nn.Module):
    """A network in training together with its losses.

    `model` is the network that is kept; the parameters of the losses are trained with it. `views` is how many augmented
    views of each image a batch holds, `epoch`, set by the loop, how many have been finished.

    A step asks the networks, then computes the losses. The first can be done part by part where a batch is larger than
    the memory, the second is of the whole batch: rows may be compared with each other.
    """

    model: nn.Module
    views: int
    epoch: int = 0

    def ask(self, batch: Batch) -> Outputs:
        """What `model` says about the views in `batch` that it learns from, with gradient.

        Rows of the first view of every image, then, if there are more, those of the second.
        """
        raise NotImplementedError

    def ask_without_gradient(self, batch: Batch) -> dict[str, Outputs]:
        """Whatever else the losses need that networks say about `batch`, by name. Nothing moves running statistics."""
        return {}

    def losses(self, outputs: Outputs, others: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        """Named 0-dim tensors, of which "loss" is minimised and the others are reported.

        `outputs` and `others` are what both ways of asking about all of `batch` returned.
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of `batch`, asked about at once."""
        others = self.ask_without_gradient(batch)
        return self.losses(self.ask(batch), others, batch)

    def networks(self) -> list[nn.Module]:
        """Every network that a step asks: `model`, and what it learns from."""
        return [self.model]

    def after_step(self, taken: Tensor) -> None:
        """Called after each step's update; `taken`, 0-dim bool, says whether there was one, or the step was skipped.

        On a GPU nothing may wait for the answer: what is to be changed after a step is changed by `taken` there.
        """


def ask(model: nn.Module, images: Tensor, stages: Sequence[str] = ()) -> Outputs:
    """What `model` says about `images`, with the maps of `stages`."""
    if not stages:
        features, logits = model(images)
        return Outputs(features, logits, {})
    return Outputs(*model(images, stages=stages))


def describe(model: Model) -> Network:
    """What a method may know of `model`, found by asking it about an empty image; nothing of the model changes."""
    modes = [(module, module.training) for module in model.modules()]
    image = next(model.parameters()).new_zeros(1, model.channels, model.image_size, model.image_size)
    with torch.no_grad():
        maps = ask(model.eval(), image, model.stage_names).maps
    for module, mode in modes:
        module.training = mode
    shapes = {name: (maps[name].shape[1], maps[name].shape[2], maps[name].shape[3]) for name in model.stage_names}
    return Network(model.feature_dim, model.classes, shapes)


def samples_of(batch: Batch) -> Samples:
    """Which images they are."""
    return Samples(batch.labels, batch.indices)
