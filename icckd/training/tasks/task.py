"""What a task is: networks to ask about a batch, and losses of what they say."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from icckd.data import Batch
from icckd.distributed import World
from icckd.distributed.parts import load_whole_state, own_part, whole_state
from icckd.methods import EvaluationSet, Findings, Network, Outputs, Samples
from icckd.models import Model
from icckd.models.modes import evaluating
from icckd.training.randomness import random_state, set_random_state
from icckd.training.statistics import unmoved_statistics
from icckd.training.tasks.frozen import ask

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.distributed.replicas import Replicas
    from icckd.exchange import Ranks
    from icckd.memory import ClassMemory
    from icckd.training.tasks.embeddings import LatestEmbeddings


class Task(nn.Module):
    """A network in training together with its losses.

    `model` is the network that is kept; the parameters of the losses are trained with it. `views` is how many augmented
    views of each image a batch holds, `strong_views` how many of them, the last ones, are varied strongly; `epoch`, set
    by the loop, how many have been finished. Where several processes train it, `group` are they, and `replicas` says
    how they share the network; batches are each one's part.

    A step asks the networks, then computes the losses. The first can be done part by part where a batch is larger than
    the memory, the second is of the whole batch: rows may be compared with each other.
    """

    model: nn.Module
    views: int = 1
    strong_views: int = 0
    epoch: int = 0
    replicas: "Replicas | None" = None
    group: "ProcessGroup | None" = None

    @property
    def asked(self) -> nn.Module:
        """What to ask for answers with gradient: `model`, or what averages its gradients over several processes."""
        return self.model if self.replicas is None else self.replicas.asked

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

        `outputs` and `others` are what both ways of asking about all of `batch` returned. Of several processes each
        returns what, on the average over them, is that of the whole batch.
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of `batch`, asked about at once."""
        others = self.ask_without_gradient(batch)
        return self.losses(self.ask(batch), others, batch)

    def samples_of(self, batch: Batch) -> Samples:
        """Which images they are, and on which ranks."""
        return Samples(batch.labels, batch.indices, ranks=self._ranks_of(batch))

    def _ranks_of(self, batch: Batch) -> "Ranks | None":
        if self.group is None or batch.whole is None:
            return None
        from icckd.exchange import Ranks

        counts, labels, indices = batch.whole
        return Ranks.known(self.group, counts, labels, indices=indices)

    def train_together(self, world: World, *, sharded: bool) -> None:
        """Let the processes of `world`, which are connected, train the networks: a replica in each, or parts of them.

        Before that each has all, and the same as the others.
        """
        if world.group is None:
            return
        from icckd.distributed.replicas import Replicas

        own = {id(parameter) for parameter in self.model.parameters()}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        self.replicas = Replicas(cast(Model, self.model), others, world.group, sharded=sharded)
        self._settle()

    def _settle(self) -> None:
        """Go through the network once, there and back, on black images; nothing of it changes.

        From its first backward on DistributedDataParallel adds gradients up in the order in which they came: a training
        that is resumed is to have the order, and the bits, of one that was not stopped.
        """
        images, state = _black_images(cast(Model, self.model), 2), random_state()
        with torch.compiler.set_stance("force_eager"), unmoved_statistics(self.model):
            outputs = ask(self.asked, images)
            (outputs.features.sum() + outputs.logits.sum()).backward()
        set_random_state(state)
        for parameter in self.model.parameters():
            parameter.grad = None

    def whole_state(self) -> dict[str, Tensor]:
        """The state dict, as of one process that has all of it; of several the first gets it. All call together."""
        state = whole_state(self)
        if self.group is not None:
            for name, module in self.divided().items():
                state |= _below(name, module.whole_state(self.group) or {})
        return state

    def load_whole_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `whole_state` gave, by any number of processes; each has all of `state`."""
        own = dict(state)
        if self.group is not None:
            for name, module in self.divided().items():
                module.load_whole_state({key: state[f"{name}.{key}"] for key, _ in module.named_buffers()})
                own |= _below(name, module.state_dict())
        load_whole_state(self, own)

    def divided(self) -> "Mapping[str, ClassMemory | LatestEmbeddings]":
        """What is no network and of which each process keeps a part, by name."""
        return {}

    def networks(self) -> list[nn.Module]:
        """Every network that a step asks: `model`, and what it learns from."""
        return [self.model]

    def findings(self, test: EvaluationSet) -> Findings:
        """What the training leaves besides the network, asked about the test images after it."""
        return Findings()

    def after_step(self, taken: Tensor) -> None:
        """Called after each step's update; `taken`, 0-dim bool, says whether there was one, or the step was skipped.

        On a GPU nothing may wait for the answer: what is to be changed after a step is changed by `taken` there.
        """


def describe(model: Model) -> Network:
    """What a method may know of `model`, found by asking it about an empty image; nothing of the model changes."""
    with torch.no_grad(), evaluating(model):
        maps = ask(model, _black_images(model, 1), model.stage_names).maps
    shapes = {name: (maps[name].shape[1], maps[name].shape[2], maps[name].shape[3]) for name in model.stage_names}
    return Network(model.feature_dim, model.classes, shapes)


def _black_images(model: Model, count: int) -> Tensor:
    parameter = own_part(next(model.parameters()))
    return parameter.new_zeros(count, *model.image_shape)


def _below(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in state.items()}


def weighted(losses: dict[str, Tensor], ranks: "Ranks | None") -> dict[str, Tensor]:
    """Means over a rank's own rows, weighted so that their mean over the ranks is that over all rows.

    Means over no rows become 0, and still take part in backward, in which ranks have to meet.
    """
    if ranks is None:
        return losses
    if not ranks.share:
        losses = {name: value.nan_to_num(0, 0, 0) for name, value in losses.items()}
    return {name: value * ranks.share for name, value in losses.items()}
