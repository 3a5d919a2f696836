"""A teacher whose margins between classes follow how similar these are."""

from dataclasses import dataclass

from torch import Tensor

from icckd.functional import cross_entropy_with_margin, hierarchical_similarity
from icckd.methods.base import MethodSettings, Network, Outputs, Rule, Samples, TeacherMethod, above_zero, register


@dataclass
class HierarchicalSettings(MethodSettings):
    """Cross-entropy + weight · adaptive hierarchical similarity (arXiv 2111.00006).

    Args:
        weight: Weight of the similarity loss of the features.
        gamma: Margin γ before the classes' similarities widen or narrow it.
        augmented: Draw each image to its own second view, too.
        rho: Sharpness ρ of that.
        positive_scale: Sharpness ς towards rows of the same class.
        negative_scale: Sharpness σ towards rows of other classes.
    """

    weight: float = 1.0
    gamma: float = 0.5
    augmented: bool = True
    rho: float = 2.0
    positive_scale: float = 2.0
    negative_scale: float = 50.0

    def rules(self) -> dict[str, Rule]:
        scales = ("rho", "positive_scale", "negative_scale")
        return {**super().rules(), **{name: above_zero(getattr(self, name)) for name in scales}}


@register
class Hierarchical(TeacherMethod):
    """The similarity loss of the features beside the cross-entropy of the first views: their sum is this project's."""

    name = "hierarchical"
    spans_ranks = True
    settings: HierarchicalSettings

    def __init__(self, settings: HierarchicalSettings, network: Network, backend: str):
        super().__init__(settings, network, backend)
        self.views = 2 if settings.augmented else 1

    def forward(self, outputs: Outputs, samples: Samples) -> dict[str, Tensor]:
        settings, count = self.settings, len(samples.labels)
        total, _ = cross_entropy_with_margin(
            outputs.logits[:count], samples.labels, reduction="sum", backend=self.backend
        )
        cross_entropy = samples.mean(total)
        similarity = hierarchical_similarity(
            outputs.features[:count],
            samples.labels,
            augmented=outputs.features[count:] if settings.augmented else None,
            gamma=settings.gamma,
            rho=settings.rho,
            positive_scale=settings.positive_scale,
            negative_scale=settings.negative_scale,
            group=samples.ranks,
            backend=self.backend,
        )
        loss = cross_entropy + settings.weight * similarity
        return {"loss": loss, "cross_entropy": cross_entropy, "hierarchical_similarity": similarity}
