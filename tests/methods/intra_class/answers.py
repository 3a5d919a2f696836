"""What a network might say about both views of random images, and the method that learns from it."""

import torch

from icckd.methods import Network, Outputs, Samples
from icckd.methods.intra_class import IntraClass, IntraClassSettings

CLASSES, ROWS, DIM = 4, 24, 6


def answers(seed, views):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(views * ROWS, DIM, generator=random)
    logits = 4 * torch.randn(views * ROWS, CLASSES, generator=random)
    labels = torch.randint(CLASSES, (ROWS,), generator=random)
    return Outputs(features, logits, {}), Samples(labels, torch.arange(ROWS))


def method(**settings):
    return IntraClass(IntraClassSettings(**settings), Network(DIM, CLASSES, {}), "reference")


def halves(outputs):
    """The features' first and second views in float64."""
    return outputs.features[:ROWS].double(), outputs.features[ROWS:].double()


def margins(logits, labels):
    """Of each row the probability of its class less the largest other."""
    probabilities = logits.double().softmax(1)
    own = probabilities.gather(1, labels[:, None])[:, 0]
    return own - probabilities.scatter(1, labels[:, None], -1).amax(1)
