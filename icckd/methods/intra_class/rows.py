"""What the intra-class loss compares."""

import torch
from torch import Tensor, nn

from icckd.errors import UserError
from icckd.methods.base import Network, Outputs
from icckd.methods.intra_class.settings import IntraClassSettings
from icckd.methods.projection import projection


class ComparedRows(nn.Module):
    """The rows that stand for what a network says about images, in the space that settings name.

    Its parameters are those of the projection, where there is one. Raises UserError where the network has too few
    classes for soft labels to be compared.
    """

    def __init__(self, settings: IntraClassSettings, network: Network):
        super().__init__()
        self.space = settings.space if settings.weight > 0 else "features"
        if self.space == "projection":
            self.projection = projection(network.feature_dim, settings.projection_dim)
        elif self.space == "soft-labels" and network.classes < 3:
            raise UserError(
                f"teacher.loss.space is soft-labels; it should be features or projection for {network.classes} "
                "classes: a sample's soft label tells nothing of one other class"
            )

    def forward(self, outputs: Outputs, labels: Tensor) -> Tensor:
        """The rows (V·B, D) of V views of images with labels (B,)."""
        if self.space == "projection":
            rows: Tensor = self.projection(outputs.features)
            return rows
        if self.space == "soft-labels":
            return others_centred(outputs.logits, labels.repeat(len(outputs.logits) // max(len(labels), 1)))
        return outputs.features


def others_centred(logits: Tensor, labels: Tensor) -> Tensor:
    """What logits (N, C) say beyond the class in labels int64 (N,): 0 there, the others less their mean.

    This project's choice. A soft label is the softmax of this at the temperature of the distillation, but for the
    probability of the own class: to subtract a number from all the others does not change their proportions.
    """
    own = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
    others = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(own, 0)
    mean = others.sum(1, keepdim=True) / (logits.shape[1] - 1)
    return (others - mean).masked_fill(own, 0)
