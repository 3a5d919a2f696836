"""What teachers' methods compare in place of the features: a projection that is dropped after training."""

from torch import nn


def projection(features: int, dim: int) -> nn.Sequential:
    """A perceptron of one hidden layer, (B, features) → (B, dim), as in SimCLR (Chen et al. 2020, arXiv 2002.05709)."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, dim))
