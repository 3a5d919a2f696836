"""What a client trains: the network, with or without experts to learn from, or an expert."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from icckd.data import Batch
from icckd.methods import Outputs
from icckd.methods.pkd import Group, Pkd
from icckd.models import Model
from icckd.training import Task
from icckd.training.tasks.frozen import ask, ask_as_it_is


class _ClientTask(Task):
    """The training of a client's network by what `method` says of losses."""

    def __init__(self, model: Model, method: Pkd):
        super().__init__()
        self.model = model
        self.method = method

    def ask(self, batch: Batch) -> Outputs:
        (images,) = batch.views
        return ask(self.asked, images)


class LocalTask(_ClientTask):
    """The network that all train; it learns from `experts`, one for each of `groups`, if there are."""

    def __init__(self, model: Model, method: Pkd):
        super().__init__(model, method)
        self.groups: Sequence[Group] = ()
        # In a list they are no parts of the task, which are trained and saved.
        self.experts: list[Model] = []

    @torch.no_grad()
    def ask_without_gradient(self, batch: Batch) -> dict[str, Outputs]:
        (images,) = batch.views
        return {str(number): ask_as_it_is(expert, images) for number, expert in enumerate(self.experts)}

    def losses(self, outputs: Outputs, others: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        experts = [others[str(number)].logits for number in range(len(self.groups))]
        losses: dict[str, Tensor] = self.method(outputs.logits, batch.labels, self.groups, experts)
        return losses


class ExpertTask(_ClientTask):
    """The expert of a group, `classes`, of which alone it sees images."""

    def __init__(self, model: Model, method: Pkd):
        super().__init__(model, method)
        self.classes: Group = tuple(range(model.classes))

    def losses(self, outputs: Outputs, others: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.method.expert_loss(outputs.logits, batch.labels, self.classes)}
