"""A teacher by supervised contrast, with the intra-class loss to keep classes from collapsing."""

from dataclasses import dataclass

from torch import Tensor

from icckd.functional import cross_entropy_with_margin, intra_class_contrastive, supervised_contrastive
from icckd.methods.base import MethodSettings, Network, Outputs, Rule, Samples, TeacherMethod, above_zero, register
from icckd.methods.projection import projection


@dataclass
class SupconSettings(MethodSettings):
    """Supervised contrast (Khosla et al. 2020, arXiv 2004.11362) + spread · intra-class contrast.

    Args:
        temperature: Temperature of the supervised contrast.
        spread: Weight of the intra-class loss between both views; 0: none (Chen et al. 2022, arXiv 2204.07596).
        spread_temperature: Temperature of the intra-class loss.
        dim: Width of the projection that both losses compare; it is dropped after training.
    """

    temperature: float = 0.1
    spread: float = 0.5
    spread_temperature: float = 0.1
    dim: int = 128

    def rules(self) -> dict[str, Rule]:
        return {
            **super().rules(),
            "temperature": above_zero(self.temperature),
            "spread_temperature": above_zero(self.spread_temperature),
            "dim": Rule(self.dim >= 1, "1 or more"),
        }


@register
class Supcon(TeacherMethod):
    """Both views of each image, projected, are the rows of a supervised contrast; labels say which belong together.

    An image's second view is the positive of its first in the intra-class loss, whose negatives are the first views of
    others of the class. The classifier learns by cross-entropy on features through which no gradient flows.
    """

    name = "supcon"
    spans_ranks = True
    detaches_features = True
    views = 2
    settings: SupconSettings

    def __init__(self, settings: SupconSettings, network: Network, backend: str):
        super().__init__(settings, network, backend)
        self.classes = network.classes
        self.projection = projection(network.feature_dim, settings.dim)

    def forward(self, outputs: Outputs, samples: Samples) -> dict[str, Tensor]:
        settings, ranks = self.settings, samples.ranks
        labels, rows = samples.labels.repeat(self.views), self.projection(outputs.features)
        both = None if ranks is None else ranks.repeated(self.views)
        total, _ = cross_entropy_with_margin(outputs.logits, labels, reduction="sum", backend=self.backend)
        cross_entropy = samples.mean(total) / self.views
        contrast = supervised_contrastive(
            rows,
            labels,
            temperature=settings.temperature,
            num_classes=self.classes,
            group=both,
            backend=self.backend,
        )
        losses = {"cross_entropy": cross_entropy, "supervised_contrast": contrast}
        loss = cross_entropy + contrast
        if settings.spread:
            first, second = rows.unflatten(0, (self.views, len(samples.labels)))
            losses["intra_class"] = intra_class_contrastive(
                first,
                second,
                samples.labels,
                temperature=settings.spread_temperature,
                num_classes=self.classes,
                group=ranks,
                backend=self.backend,
            )
            loss = loss + settings.spread * losses["intra_class"]
        return {"loss": loss, **losses}
