"""What the intra-class loss compares: features, a projection of them, or what logits say of other classes."""

import pytest
import torch

from icckd.errors import UserError
from icckd.methods import Network
from icckd.methods.intra_class import IntraClass, IntraClassSettings
from icckd.reference import intra_class_contrastive
from tests.methods.intra_class.answers import CLASSES, DIM, ROWS, answers, margins, method


def test_soft_labels_are_compared_without_the_own_class():
    outputs, samples = answers(1, 2)
    rows = []
    for logits, label in zip(outputs.logits.double(), samples.labels.repeat(2), strict=True):
        others = [c for c in range(CLASSES) if c != label]
        row = torch.zeros(CLASSES, dtype=torch.float64)
        row[others] = logits[others] - logits[others].mean()
        rows.append(row)
    anchor, positive = torch.stack(rows).split(ROWS)
    gate = margins(outputs.logits[:ROWS], samples.labels) > 0.1
    expected = intra_class_contrastive(anchor, positive, samples.labels, gate=gate)
    losses = method(space="soft-labels", margin=0.1)(outputs, samples)
    torch.testing.assert_close(losses["intra_class"].double(), expected, rtol=1e-5, atol=1e-6)


def test_soft_labels_send_no_gradient_to_the_own_class():
    outputs, samples = answers(2, 2)
    logits = outputs.logits.requires_grad_()
    method(space="soft-labels", margin=-1.0)(outputs._replace(logits=logits), samples)["intra_class"].backward()
    own = torch.nn.functional.one_hot(samples.labels.repeat(2), CLASSES).bool()
    assert not logits.grad[own].any()
    assert logits.grad[~own].abs().min() > 0


def test_a_projection_is_compared_and_trained():
    outputs, samples = answers(3, 2)
    torch.manual_seed(3)
    teacher = method(space="projection", projection_dim=5, margin=-1.0, weight=0.4)
    first, _, second = (layer for layer in teacher.compared.projection)
    hidden = (outputs.features @ first.weight.T + first.bias).clamp(min=0)
    anchor, positive = (hidden @ second.weight.T + second.bias).double().split(ROWS)
    assert anchor.shape == (ROWS, 5)
    losses = teacher(outputs, samples)
    expected = intra_class_contrastive(anchor, positive, samples.labels)
    torch.testing.assert_close(losses["intra_class"].double(), expected, rtol=1e-4, atol=1e-5)
    losses["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in (first.weight, second.weight))


def test_a_projection_that_nothing_compares_is_not_made():
    assert not list(method(space="projection", weight=0).parameters())


def test_soft_labels_of_two_classes_are_refused():
    with pytest.raises(UserError, match="space is soft-labels; it should be features or projection for 2 classes"):
        IntraClass(IntraClassSettings(space="soft-labels"), Network(DIM, 2, {}), "reference")
