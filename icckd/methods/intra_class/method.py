"""The paper's teacher: cross-entropy, and a contrastive loss within each class."""

from torch import Tensor

from icckd.functional import cross_entropy_with_margin
from icckd.losses import TeacherLoss, TeacherLossOutput
from icckd.methods.base import Network, Outputs, Samples, TeacherMethod, TrainingSet, register
from icckd.methods.intra_class.course import weight_at
from icckd.methods.intra_class.ratio import RatioControl
from icckd.methods.intra_class.rows import ComparedRows
from icckd.methods.intra_class.settings import IntraClassSettings


@register
class IntraClass(TeacherMethod):
    """`icckd.TeacherLoss` between two views of each image, or between one and the positives that samples come with.

    A second view that no loss is of is not made. Where the weight of the intra-class loss is not the same throughout,
    it is reported with the losses, and so is the ratio of distances where it follows that.
    """

    name = "intra-class"
    takes_positives = True
    spans_ranks = True
    settings: IntraClassSettings

    def __init__(self, settings: IntraClassSettings, network: Network, backend: str):
        super().__init__(settings, network, backend)
        self.uses_memory = settings.weight > 0
        self.views = _views(settings)
        self.strong_views = self.strong_views_of(settings)
        self.compared = ComparedRows(settings, network)
        self.control = _control(settings, network)
        self.criterion = TeacherLoss(
            settings.weight,
            settings.margin,
            settings.margin_space,
            settings.temperature,
            settings.label_smoothing,
            backend,
            gate=settings.gate,
            gate_share=settings.gate_share,
            gate_width=settings.gate_width,
            neighbours=settings.neighbours,
        )
        # Of the step under way: embeddings of the first views, which they are, and the share of them that are anchors.
        self._step: tuple[Tensor, Samples, Tensor] | None = None

    @classmethod
    def strong_views_of(cls, settings: IntraClassSettings) -> int:
        return 1 if settings.strong_second_view and _views(settings) == 2 else cls.strong_views

    def prepare(self, known: TrainingSet) -> None:
        if self.control is not None:
            self.control.images = len(known.labels)

    def forward(self, outputs: Outputs, samples: Samples) -> dict[str, Tensor]:
        count = len(samples.labels)
        rows = self.compared(outputs, samples.labels)
        anchor, positive = rows[:count], samples.positives
        positive = rows[-count:] if positive is None else positive.to(anchor.dtype)
        weight = self._weight(samples)
        losses = self.criterion(
            outputs.logits[:count],
            samples.labels,
            anchor,
            positive,
            samples.memory,
            anchors=samples.anchors,
            group=samples.ranks,
            weight=weight,
        )
        if self.settings.cross_entropy_views == "both":
            losses = self._with_second_view(losses, outputs.logits[count:], samples)
        named = {"loss": losses.total, **{k: v for k, v in losses._asdict().items() if k != "total"}}
        if weight is not None:
            named["weight"] = losses.total.new_zeros(()).add(weight)
        if self.control is not None:
            named["running_ratio"] = self.control.ratio.clone()
            self._step = outputs.features[:count].detach(), samples, losses.active_fraction
        return named

    def after_step(self, taken: Tensor) -> None:
        if self.control is None or self._step is None:
            return
        (features, samples, active), self._step = self._step, None
        self.control.follow(features, samples.labels, active, taken, samples.ranks)

    def _weight(self, samples: Samples) -> float | Tensor | None:
        """The weight of this step, where it is not the same in all."""
        if self.control is not None:
            return self.control.weight.clone()
        varies = self.settings.weight > 0 and (self.settings.weight_warmup or self.settings.weight_decline)
        return weight_at(samples.progress, self.settings) if varies else None

    def _with_second_view(self, losses: TeacherLossOutput, logits: Tensor, samples: Samples) -> TeacherLossOutput:
        smoothing, backend = self.settings.label_smoothing, self.backend
        second, _ = cross_entropy_with_margin(
            logits, samples.labels, label_smoothing=smoothing, reduction="sum", backend=backend
        )
        more = (samples.mean(second) - losses.cross_entropy) / 2
        return losses._replace(total=losses.total + more, cross_entropy=losses.cross_entropy + more)


def _views(settings: IntraClassSettings) -> int:
    return 2 if settings.weight > 0 or settings.cross_entropy_views == "both" else 1


def _control(settings: IntraClassSettings, network: Network) -> RatioControl | None:
    if settings.target_ratio is None:
        return None
    return RatioControl(settings.target_ratio, settings.weight, network.classes, network.feature_dim)
