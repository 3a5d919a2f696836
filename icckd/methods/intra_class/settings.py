"""The settings of the paper's teacher."""

import math
from dataclasses import dataclass
from typing import Literal

from icckd.methods.base import LARGEST_FACTOR, MethodSettings, Rule, above_zero
from icckd.methods.intra_class.ratio import LARGEST_WEIGHT, SMALLEST_WEIGHT


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
        space: What the intra-class loss compares: the features, a projection of them that is trained and dropped
            after training, or what the logits say of the other classes.
        projection_dim: Width of the projection.
        gate: Which samples are anchors: those above the margin, the quantile of the batch with the largest margins, or
            all, with soft weights that rise from 0 to 1 around the margin.
        gate_share: The share of the batch's samples that are anchors with gate quantile.
        gate_width: How gradually weights rise with gate soft: they are sigmoid((a sample's margin - margin) / this).
        weight_warmup: The first share of the training, over which the weight rises linearly from 0.
        weight_decline: The last share of the training, over which the weight falls linearly to 0.
        target_ratio: Adjust the weight, from where it starts, so that the ratio of intra- to inter-class distance of
            the training images' features settles here (null: the weight is as given).
        neighbours: How many further positives each sample has: the nearest second views of others of its class.
        strong_second_view: Vary the second view by data.strong_augmentation.
    """

    weight: float = 0.02
    margin: float = 0.2
    margin_space: Literal["probability", "logit"] = "probability"
    temperature: float = 0.1
    label_smoothing: float = 0.0
    cross_entropy_views: Literal["first", "both"] = "first"
    space: Literal["features", "projection", "soft-labels"] = "features"
    projection_dim: int = 128
    gate: Literal["margin", "quantile", "soft"] = "margin"
    gate_share: float = 0.5
    gate_width: float = 0.1
    weight_warmup: float = 0.0
    weight_decline: float = 0.0
    target_ratio: float | None = None
    neighbours: int = 0
    strong_second_view: bool = False

    def rules(self) -> dict[str, Rule]:
        warmup, decline = self.weight_warmup, self.weight_decline
        rules = {
            **super().rules(),
            "weight": Rule(0 <= self.weight <= LARGEST_FACTOR, f"in [0, {LARGEST_FACTOR:.3g}]"),
            "margin": Rule(self.margin == self.margin, "a number"),
            "temperature": above_zero(self.temperature),
            "label_smoothing": Rule(0 <= self.label_smoothing <= 1, "in [0, 1]"),
            "projection_dim": Rule(self.projection_dim >= 1, "1 or more"),
            "gate_share": Rule(0 < self.gate_share <= 1, "in (0, 1]"),
            "gate_width": above_zero(self.gate_width),
            "weight_warmup": Rule(0 <= warmup <= 1, "in [0, 1]"),
            "weight_decline": Rule(0 <= decline <= 1 - warmup, f"in [0, 1], and with weight_warmup {warmup} 1 at most"),
        }
        return rules if self.target_ratio is None else rules | self._rules_of_target(self.target_ratio)

    def _rules_of_target(self, target: float) -> dict[str, Rule]:
        bounds = f"in [{SMALLEST_WEIGHT:g}, {LARGEST_WEIGHT:g}] beside target_ratio, within which it is adjusted"
        alone = "0 beside target_ratio, which adjusts the weight"
        return {
            "target_ratio": Rule(0 < target < math.inf, "null, or a finite number above 0"),
            "weight": Rule(SMALLEST_WEIGHT <= self.weight <= LARGEST_WEIGHT, bounds),
            "weight_warmup": Rule(self.weight_warmup == 0, alone),
            "weight_decline": Rule(self.weight_decline == 0, alone),
        }
