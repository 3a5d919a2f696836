"""Training a student."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from icckd.backends.arithmetic import accumulation_dtype
from icckd.data import Batch
from icckd.methods import Outputs, Pair, StudentMethod
from icckd.models import Model
from icckd.settings import StudentLossSettings
from icckd.training.tasks.frozen import FrozenTeacher, ask
from icckd.training.tasks.task import Task, describe, weighted

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_TEACHER = "teacher"


class DistillationTask(Task):
    """A student that learns from the labels and, by the methods that `settings` name, from a frozen teacher.

    Teacher and student see the same view, the teacher once a batch however many methods there are. `labels` are those
    of all training images, `group` are the processes that train it, if there are several.
    """

    def __init__(
        self,
        model: Model,
        teacher: FrozenTeacher,
        labels: Tensor,
        settings: StudentLossSettings,
        group: "ProcessGroup | None" = None,
    ):
        super().__init__()
        self.model = model
        self.group = group
        self.teacher = teacher
        pair = Pair(describe(model), describe(teacher.model), labels)
        self.settings = settings.method_settings()
        self.weights = settings.weights()
        self.cross_entropy_weight = settings.weight_of_cross_entropy()
        self.methods = nn.ModuleDict(
            {
                name: method(self.settings[name], pair, settings.backend)
                for name, method in settings.method_classes().items()
            }
        )

    def ask(self, batch: Batch) -> Outputs:
        (images,) = batch.views
        return ask(self.asked, images, _all(method.student_stages for method in self._by_name().values()))

    def ask_without_gradient(self, batch: Batch) -> dict[str, Outputs]:
        methods, (images,) = self._by_name(), batch.views
        return {_TEACHER: self.teacher(images, _all(m.teacher_stages for m in methods.values()))} if methods else {}

    def losses(self, outputs: Outputs, others: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        methods, samples = self._by_name(), self.samples_of(batch)
        losses = {name: method(outputs, others[_TEACHER], samples) for name, method in methods.items()}
        by_row = {name: value for name, value in losses.items() if not methods[name].spans_ranks}
        logits = outputs.logits.to(accumulation_dtype(outputs.logits))
        by_row["cross_entropy"] = nn.functional.cross_entropy(logits, batch.labels)
        losses |= weighted(by_row, samples.ranks)
        cross_entropy = losses.pop("cross_entropy")
        loss = self.cross_entropy_weight * cross_entropy
        for name, method in methods.items():
            loss = loss + self.weights[name] * method.settings.warmth(self.epoch) * losses[name]
        return {"loss": loss, "cross_entropy": cross_entropy, **losses}

    def networks(self) -> list[nn.Module]:
        return [self.model, self.teacher.model]

    def after_step(self, taken: Tensor) -> None:
        for method in self._by_name().values():
            method.after_step(taken)

    def _by_name(self) -> dict[str, StudentMethod]:
        return cast(dict[str, StudentMethod], dict(self.methods.items()))


def _all(stages: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(sorted(set().union(*stages)))
