"""The paper's teacher: which views it asks for, and what its loss is of."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from icckd.methods import Network, Outputs, Samples
from icckd.methods.intra_class import IntraClass, IntraClassSettings
from icckd.reference import intra_class_contrastive

CLASSES, ROWS, DIM = 4, 24, 6


def answers(seed, views):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(views * ROWS, DIM, generator=random)
    logits = 4 * torch.randn(views * ROWS, CLASSES, generator=random)
    labels = torch.randint(CLASSES, (ROWS,), generator=random)
    return Outputs(features, logits, {}), Samples(labels, torch.arange(ROWS))


def method(**settings):
    return IntraClass(IntraClassSettings(**settings), Network(DIM, CLASSES, {}), "reference")


@pytest.mark.parametrize(
    ("weight", "of", "views"), [(0, "first", 1), (0, "both", 2), (0.1, "first", 2), (0.1, "both", 2)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_of_the_views_that_it_names(weight, of, views, smoothing):
    teacher = method(weight=weight, cross_entropy_views=of, label_smoothing=smoothing, margin=0.3)
    assert teacher.views == views
    outputs, samples = answers(5, views)
    logits = outputs.logits.double()
    seen = logits if of == "both" else logits[:ROWS]
    targets = samples.labels.repeat(len(seen) // ROWS)
    expected = cross_entropy(seen, targets, label_smoothing=smoothing)
    losses = teacher(outputs, samples)
    torch.testing.assert_close(losses["cross_entropy"].double(), expected, rtol=1e-5, atol=1e-6)
    if weight:
        probabilities = logits[:ROWS].softmax(1)
        own = probabilities.gather(1, samples.labels[:, None])[:, 0]
        margin = own - probabilities.scatter(1, samples.labels[:, None], -1).amax(1)
        anchor, positive = outputs.features[:ROWS].double(), outputs.features[ROWS:].double()
        expected = expected + weight * intra_class_contrastive(anchor, positive, samples.labels, gate=margin > 0.3)
    torch.testing.assert_close(losses["loss"].double(), expected, rtol=1e-5, atol=1e-6)
