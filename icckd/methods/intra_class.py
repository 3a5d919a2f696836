"""The paper's teacher: cross-entropy, and a contrastive loss within each class."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from icckd.functional import cross_entropy_with_margin
from icckd.losses import TeacherLoss, TeacherLossOutput
from icckd.methods.base import MethodSettings, Network, Outputs, Rule, Samples, TeacherMethod, above_zero, register


@dataclass
class IntraClassSettings(MethodSettings):
    """Cross-entropy + weight · intra-class contrastive loss (arXiv 2509.22053).

    Args:
        weight: Weight λ of the intra-class loss; 0 trains a plain cross-entropy teacher.
        margin: Threshold δ: only samples whose classification margin exceeds it are anchors.
        margin_space: Measure the margin on softmax probabilities or on logits.
        temperature: Temperature τ of the intra-class loss.
        label_smoothing: Cross-entropy's label smoothing.
        cross_entropy_views: The views of each image that the cross-entropy is of: the first alone, or the mean over
            both. With weight 0, both trains a plain teacher at the cost of one with the intra-class loss.
    """

    weight: float = 0.02
    margin: float = 0.2
    margin_space: Literal["probability", "logit"] = "probability"
    temperature: float = 0.1
    label_smoothing: float = 0.0
    cross_entropy_views: Literal["first", "both"] = "first"

    def rules(self) -> dict[str, Rule]:
        return {
            **super().rules(),
            "margin": Rule(self.margin == self.margin, "a number"),
            "temperature": above_zero(self.temperature),
            "label_smoothing": Rule(0 <= self.label_smoothing <= 1, "in [0, 1]"),
        }


@register
class IntraClass(TeacherMethod):
    """`icckd.TeacherLoss` between two views of each image, or between one and the positives that samples come with.

    A second view that no loss is of is not made.
    """

    name = "intra-class"
    takes_positives = True
    spans_ranks = True
    settings: IntraClassSettings

    def __init__(self, settings: IntraClassSettings, network: Network, backend: str):
        super().__init__(settings, network, backend)
        self.uses_memory = settings.weight > 0
        self.views = 2 if settings.weight > 0 or settings.cross_entropy_views == "both" else 1
        self.criterion = TeacherLoss(
            settings.weight,
            settings.margin,
            settings.margin_space,
            settings.temperature,
            settings.label_smoothing,
            backend,
        )

    def forward(self, outputs: Outputs, samples: Samples) -> dict[str, Tensor]:
        count = len(samples.labels)
        anchor, positive = outputs.features[:count], samples.positives
        positive = outputs.features[-count:] if positive is None else positive.to(anchor.dtype)
        losses = self.criterion(
            outputs.logits[:count],
            samples.labels,
            anchor,
            positive,
            samples.memory,
            anchors=samples.anchors,
            group=samples.ranks,
        )
        if self.settings.cross_entropy_views == "both":
            losses = self._with_second_view(losses, outputs.logits[count:], samples)
        return {"loss": losses.total, **{k: v for k, v in losses._asdict().items() if k != "total"}}

    def _with_second_view(self, losses: TeacherLossOutput, logits: Tensor, samples: Samples) -> TeacherLossOutput:
        smoothing, backend = self.settings.label_smoothing, self.backend
        second, _ = cross_entropy_with_margin(
            logits, samples.labels, label_smoothing=smoothing, reduction="sum", backend=backend
        )
        more = (samples.mean(second) - losses.cross_entropy) / 2
        return losses._replace(total=losses.total + more, cross_entropy=losses.cross_entropy + more)
