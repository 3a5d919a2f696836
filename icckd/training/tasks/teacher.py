"""Training a teacher."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from icckd.data import Batch
from icckd.distributed import World
from icckd.environment import free_memory
from icckd.errors import UserError
from icckd.memory import ClassMemory, memory_bytes
from icckd.methods import EvaluationSet, Findings, Outputs, Samples, TrainingSet
from icckd.models import Model
from icckd.settings import MemorySettings, TeacherSettings
from icckd.training.statistics import unmoved_statistics
from icckd.training.tasks.average import MovingAverage
from icckd.training.tasks.embeddings import LatestEmbeddings
from icckd.training.tasks.frozen import ask, ask_as_it_is
from icckd.training.tasks.task import Task, describe, weighted

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_AVERAGE, _SECOND_VIEW = "average", "second view"
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8": torch.float8_e4m3fn,
}


class TeacherTask(Task):
    """A network trained by the method that `settings` name, on so many `images`, of which the method may know `known`.

    What earlier steps leave for later ones is kept on the network's device, divided among the processes of `group` if
    several train it. Raises UserError, naming the setting, where there is no room for that.
    """

    def __init__(
        self,
        model: Model,
        settings: TeacherSettings,
        images: int,
        group: "ProcessGroup | None" = None,
        known: TrainingSet | None = None,
    ):
        super().__init__()
        loss = settings.loss
        self.model = model
        self.group = group
        self.method = loss.method_class()(loss.method_settings(), describe(model), loss.backend)
        if known is not None:
            self.method.prepare(known)
        model.detaches_features = self.method.detaches_features
        self.epochs = settings.epochs
        self.positive = settings.positive if self.method.views > 1 else "second-view"
        self.views, self.strong_views = self.method.views, self.method.strong_views
        if self.positive == "previous-epoch":
            self.views, self.strong_views = 1, 0
        self.memory: ClassMemory | None = None
        self.average: MovingAverage | None = None
        self.latest: LatestEmbeddings | None = None
        self.memory_warmup = settings.memory.warmup_epochs
        if self.method.uses_memory and settings.memory.capacity:
            self.memory = _memory(model, settings.memory, group)
            if settings.memory.average:
                self.average = MovingAverage(model, settings.memory.average)
        if self.positive == "previous-epoch":
            self.latest = _latest_embeddings(model, images, group)
        # Of the step under way: embeddings of the first views, those of the moving average, if any, and which they are.
        self._step: tuple[Tensor, Tensor | None, Samples] | None = None

    def ask(self, batch: Batch) -> Outputs:
        images = torch.cat(batch.views) if self.positive == "second-view" else batch.views[0]
        return ask(self.asked, images, self.method.stages)

    @torch.no_grad()
    def ask_without_gradient(self, batch: Batch) -> dict[str, Outputs]:
        others = {}
        if self.positive == "second-view-detached":
            with unmoved_statistics(self.model):
                others[_SECOND_VIEW] = ask(self.model, batch.views[1])
        if self.average is not None:
            others[_AVERAGE] = ask(self.average.network, batch.views[0])
        return others

    def losses(self, outputs: Outputs, others: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        samples = self._samples(others, batch)
        own = outputs.features[: len(batch.labels)].detach()
        self._step = (own, others[_AVERAGE].features if self.average is not None else None, samples)
        losses: dict[str, Tensor] = self.method(outputs, samples)
        return losses if self.method.spans_ranks else weighted(losses, samples.ranks)

    def train_together(self, world: World, *, sharded: bool) -> None:
        super().train_together(world, sharded=sharded)
        if self.average is not None and self.replicas is not None and sharded:
            from icckd.distributed.replicas import shard

            shard(cast(Model, self.average.network))

    def divided(self) -> Mapping[str, ClassMemory | LatestEmbeddings]:
        return {name: kept for name, kept in (("memory", self.memory), ("latest", self.latest)) if kept is not None}

    def networks(self) -> list[nn.Module]:
        return [self.model] if self.average is None else [self.model, self.average.network]

    def findings(self, test: EvaluationSet) -> Findings:
        return self.method.findings(test)

    def after_step(self, taken: Tensor) -> None:
        self.method.after_step(taken)
        if self._step is None:
            return
        own, averages, samples = self._step
        self._step = None
        if self.memory is not None:
            remembered, labels = _at_owners(own, averages, samples)
            self.memory.push(remembered, torch.where(taken, labels, -1))
        if self.average is not None:
            self.average.follow(self.model, taken)
        if self.latest is not None:
            self.latest.keep(samples.indices, own, taken, samples.ranks)

    def _samples(self, others: Mapping[str, Outputs], batch: Batch) -> Samples:
        """The images of `batch` with what the method may know of them and of others."""
        memory = self.memory if self.epoch >= self.memory_warmup else None
        samples = self.samples_of(batch)._replace(
            memory=memory,
            progress=self.epoch / self.epochs,
            images=batch.views[0],
            ask=partial(ask_as_it_is, self.model),
        )
        if self.latest is not None:
            positives, known = self.latest.find(batch.indices, samples.ranks)
            # In the first epoch only a sampler that repeats images would find any.
            return samples._replace(positives=positives, anchors=known & (self.epoch > 0))
        return samples._replace(positives=others[_SECOND_VIEW].features if _SECOND_VIEW in others else None)


def _at_owners(own: Tensor, averages: Tensor | None, samples: Samples) -> tuple[Tensor, Tensor]:
    """The embeddings to remember (M, F) and their labels (M,): of several processes those of the classes of this one.

    Those of the network itself have come for the loss, unless that has left them where they were.
    """
    remembered, ranks = own if averages is None else averages, samples.ranks
    if ranks is None:
        return remembered, samples.labels
    if averages is None and ranks.arrived is not None:
        return ranks.arrived
    return ranks.to_owners(remembered, samples.labels)


def _memory(model: Model, settings: MemorySettings, group: "ProcessGroup | None") -> ClassMemory:
    sizes, dtype = (model.classes, settings.capacity, model.feature_dim), _DTYPES[settings.dtype]
    ranks = 1 if group is None else group.size()
    _check_room(
        model,
        ranks,
        memory_bytes(*sizes, dtype, ranks),
        f"teacher.memory.capacity is {settings.capacity}",
        f"{model.classes} classes of as many embeddings of {model.feature_dim} numbers in {settings.dtype}",
        "give less, or a narrower teacher.memory.dtype",
    )
    with _device(model):
        return ClassMemory(*sizes, dtype, group)


def _latest_embeddings(model: Model, images: int, group: "ProcessGroup | None") -> LatestEmbeddings:
    ranks = 1 if group is None else group.size()
    _check_room(
        model,
        ranks,
        4 * -(-images // ranks) * model.feature_dim,
        "teacher.positive is previous-epoch",
        f"an embedding of {model.feature_dim} float32 numbers for each of {images} images",
        "use second-view-detached",
    )
    with _device(model):
        return LatestEmbeddings(images, model.feature_dim, group)


def _check_room(model: Model, ranks: int, needed: int, setting: str, what: str, remedy: str) -> None:
    """Raise UserError where each of so many ranks needs more bytes than are free."""
    device = _device(model)
    among = f", divided among {ranks} processes" if ranks > 1 else ""
    free = free_memory(device)
    if needed > free:
        raise UserError(
            f"{setting}, which takes {needed / 1e9:,.1f} GB: {what}{among}; {free / 1e9:,.1f} GB are free on the "
            f"{device.type}: {remedy}"
        )


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device
