"""The loss modules against the definition put together by hand."""

import pytest
import torch

from icckd import ClassMemory, IntraClassContrastiveLoss, TeacherLoss, functional, reference
from icckd.functional import intra_class_contrastive


def batch(generator, count=24, classes=4, dim=6):
    """Logits, labels with an ignored row, features and positive features."""
    labels = torch.randint(0, classes, (count,), generator=generator)
    labels[3] = -100
    logits = 2 * torch.randn(count, classes, generator=generator)
    features, positive = (torch.randn(count, dim, generator=generator) for _ in range(2))
    return [x.requires_grad_() if x.is_floating_point() else x for x in (logits, labels, features, positive)]


@pytest.mark.parametrize("space", ["probability", "logit"])
@pytest.mark.parametrize("remembers", [False, True])
def test_teacher_loss_is_its_parts(generator, backend, space, remembers):
    logits, labels, features, positive = batch(generator)
    options, memory = {}, None
    if remembers:
        memory = ClassMemory(4, 3, 6)
        memory.push(torch.randn(7, 6, generator=generator), torch.tensor([0, 0, 1, 2, 2, 2, 2]))
        options = dict(zip(("memory", "memory_labels"), memory.tensors(), strict=True))
    module = TeacherLoss(0.3, 0.1, space, temperature=0.2, label_smoothing=0.1, backend=backend)
    output = module(logits, labels, features, positive, memory)

    cross_entropy, margin = reference.cross_entropy_with_margin(logits, labels, space=space, label_smoothing=0.1)
    gate = margin > 0.1
    assert 0 < gate.sum() < 23
    intra_class = reference.intra_class_contrastive(features, positive, labels, gate=gate, temperature=0.2, **options)
    expected = (cross_entropy + 0.3 * intra_class, cross_entropy, intra_class, gate.sum() / 23)
    expected += (margin[labels >= 0].mean(),)
    for x, y in zip(output, expected, strict=True):
        torch.testing.assert_close(x, y)
    inputs = (logits, features, positive)
    for x, y in zip(torch.autograd.grad(output.total, inputs), torch.autograd.grad(expected[0], inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_teacher_loss_names_its_parts(generator):
    output = TeacherLoss()(*batch(generator))
    assert output._fields == ("total", "cross_entropy", "intra_class", "active_fraction", "mean_margin")
    assert not output.active_fraction.requires_grad
    assert not output.mean_margin.requires_grad


def test_weight_zero_computes_no_intra_class_loss(generator, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("computed")

    monkeypatch.setattr("icckd.losses.intra_class_contrastive", refuse)
    logits, labels, features, _ = batch(generator)
    output = TeacherLoss(weight=0)(logits, labels, features, features)
    assert output.intra_class.item() == 0
    assert torch.equal(output.total, output.cross_entropy)
    assert output.active_fraction > 0


def test_no_labelled_row(generator):
    logits, labels, features, positive = batch(generator)
    output = TeacherLoss()(logits, torch.full_like(labels, -100), features, positive)
    assert output.intra_class == output.active_fraction == output.mean_margin == 0


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32], ids=str)
def test_narrow_labels_are_what_wide_ones_are(generator, dtype):
    """Class 156 is −100 in eight bits, and 200 classes are more than int8 counts."""
    held = torch.iinfo(dtype)
    labels = torch.tensor([label for label in (156, 5, 156, 5, 100, 100, -100) if held.min <= label <= held.max])
    logits = 3 * torch.randn(len(labels), 200, generator=generator)
    logits[range(len(labels)), labels.clamp(min=0)] += 9
    features, positive = torch.randn(2, len(labels), 6, generator=generator)
    memory = ClassMemory(200, 2, 6)
    memory.push(positive, labels.to(dtype))
    module = TeacherLoss(weight=1.0)
    actual = module(logits, labels.to(dtype), features, positive, memory)
    expected = module(logits, labels, features, positive, memory)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))
    assert 0 < actual.active_fraction <= 1


def test_intra_class_module_is_the_function(generator, backend):
    _, labels, features, positive = batch(generator)
    gate = torch.rand(24, generator=generator) < 0.5
    memory = ClassMemory(4, 2, 6)
    memory.push(torch.randn(5, 6, generator=generator), torch.tensor([0, 1, 1, 3, 3]))
    for reduction in ("mean", "sum", "none"):
        module = IntraClassContrastiveLoss(0.3, normalize=False, reduction=reduction, backend=backend)
        options = {"temperature": 0.3, "normalize": False, "reduction": reduction, "backend": backend}
        expected = intra_class_contrastive(features, positive, labels, **options)
        assert torch.equal(module(features, positive, labels), expected)
        rows, memory_labels = memory.tensors()
        expected = intra_class_contrastive(
            features, positive, labels, gate=gate, memory=rows, memory_labels=memory_labels, **options
        )
        torch.testing.assert_close(module(features, positive, labels, gate, memory), expected)


def test_temperature_may_be_learned(generator):
    _, labels, features, positive = batch(generator)
    module = IntraClassContrastiveLoss(torch.nn.Parameter(torch.tensor(0.1)))
    module(features, positive, labels).backward()
    (parameter,) = module.parameters()
    assert parameter.grad.abs() > 0


def test_an_empty_memory_is_allowed(generator):
    logits, labels, features, positive = batch(generator)
    module = TeacherLoss(1.0)
    with_memory = module(logits, labels, features, positive, ClassMemory(4, 2, 6))
    torch.testing.assert_close(with_memory.total, module(logits, labels, features, positive).total)


def test_only_the_rows_named_are_anchors(generator, backend):
    logits, labels, features, positive = batch(generator)
    module, anchors = TeacherLoss(1.0, margin=0.0, backend=backend), torch.rand(24, generator=generator) < 0.5
    gate = (reference.classification_margin(logits, labels) > 0) & anchors
    losses = module(logits, labels, features, positive, anchors=anchors)
    expected = intra_class_contrastive(features, positive, labels, gate=gate, backend=backend)
    torch.testing.assert_close(losses.intra_class, expected)
    torch.testing.assert_close(losses.active_fraction, gate.sum() / 23)
    assert losses.intra_class != module(logits, labels, features, positive).intra_class
    with pytest.raises(TypeError, match=r"anchors has dtype torch.float32; it should be torch.bool"):
        module(logits, labels, features, positive, anchors=anchors.float())
    with pytest.raises(ValueError, match=r"anchors has shape \(3,\); it should be \(24,\)"):
        module(logits, labels, features, positive, anchors=anchors[:3])


@pytest.mark.parametrize("neighbours", [1, 3, 30])
def test_the_nearest_of_the_class_are_further_positives(generator, backend, neighbours):
    logits, labels, features, positive = batch(generator)
    labels[labels == 2] = 1
    labels[5] = 2  # Alone.
    gate = reference.classification_margin(logits, labels) > -0.5
    cosine = torch.nn.functional.normalize(features.detach()) @ torch.nn.functional.normalize(positive.detach()).T
    expected = reference.intra_class_contrastive(features, positive, labels, gate=gate)
    for place in range(neighbours):
        chosen = []
        for i in range(24):
            others = sorted((j for j in range(24) if j != i and labels[j] == labels[i]), key=lambda j: -cosine[i, j])
            chosen.append(others[place] if place < len(others) else i)
        expected = expected + reference.intra_class_contrastive(features, positive[chosen], labels, gate=gate)
    expected = expected / (1 + neighbours)
    losses = TeacherLoss(1.0, -0.5, backend=backend, neighbours=neighbours)(logits, labels, features, positive)
    torch.testing.assert_close(losses.intra_class, expected, rtol=1e-4, atol=1e-5)
    inputs = (features, positive)
    pairs = zip(torch.autograd.grad(losses.intra_class, inputs), torch.autograd.grad(expected, inputs), strict=True)
    for x, y in pairs:
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weight", [0.7, torch.tensor(0.7), 0.0])
def test_another_weight_takes_the_place_of_its_own(generator, weight):
    inputs = batch(generator)
    losses = TeacherLoss(0.2, -1.0)(*inputs, weight=weight)
    torch.testing.assert_close(losses.total, losses.cross_entropy + weight * losses.intra_class)
    assert losses.intra_class > 0


@pytest.mark.parametrize("gate", ["quantile", "soft"])
def test_rows_without_a_label_are_no_anchors(generator, gate):
    logits, labels, features, positive = batch(generator)
    module = TeacherLoss(1.0, 0.2, gate=gate, gate_share=0.4)
    losses, kept = module(logits, labels, features, positive), labels >= 0
    expected = module(*(x[kept] for x in (logits, labels, features, positive)))
    for x, y in zip(losses, expected, strict=True):
        torch.testing.assert_close(x, y)
    anchors = torch.arange(24) % 2 == 0
    fewer = module(logits, labels, features, positive, anchors=anchors)
    assert 0 < fewer.active_fraction < losses.active_fraction


@pytest.mark.parametrize("gate", ["margin", "quantile", "soft"])
def test_logits_that_are_not_finite_give_a_loss_that_is_not(generator, gate):
    logits, labels, features, positive = batch(generator)
    losses = TeacherLoss(gate=gate)(logits * torch.nan, labels, features, positive)
    assert losses.total.isnan()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.randn(23, 6)}, ValueError, r"features has shape \(23, 6\); it should be \(24, D\)"),
        ({"features": torch.randn(24)}, ValueError, r"features has shape \(24,\); it should be \(24, D\)"),
        ({"positive_features": torch.randn(24, 5)}, ValueError, r"positive_features has shape .* be \(24, 6\)"),
        ({"positive_features": None}, TypeError, "positive_features is a NoneType; it should be a torch.Tensor"),
        ({"weight": torch.ones(2)}, ValueError, r"weight has shape \(2,\); it should be a number or a 0-dim tensor"),
        ({"weight": True}, TypeError, "weight is True; it should be a number"),
    ],
)
def test_wrong_arguments(generator, change, error, message):
    names = ("logits", "labels", "features", "positive_features")
    arguments = dict(zip(names, batch(generator), strict=True)) | change
    with pytest.raises(error, match=message):
        TeacherLoss(neighbours=2)(**arguments)


def test_modules_show_their_settings():
    assert "temperature=0.2" in repr(IntraClassContrastiveLoss(0.2))
    assert "margin=0.3" in repr(TeacherLoss(margin=0.3))
    assert "capacity=7" in repr(ClassMemory(2, 7, 3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": -1}, ValueError, "weight is -1; it should be"),
        ({"margin": "wide"}, TypeError, "margin is 'wide'; it should be a number"),
        ({"margin_space": "log"}, ValueError, "margin_space is 'log'; it should be 'probability' or 'logit'"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0; it should be"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing is 2.0; it should be"),
        ({"gate": "hard"}, ValueError, "gate is 'hard'; it should be 'margin', 'quantile' or 'soft'"),
        ({"gate_share": 0}, ValueError, "gate_share is 0; it should be"),
        ({"gate_share": 1.5}, ValueError, "gate_share is 1.5; it should be"),
        ({"gate_width": 0.0}, ValueError, "gate_width is 0.0; it should be"),
        ({"neighbours": -1}, ValueError, "neighbours is -1; it should be 0 or more"),
        ({"neighbours": 0.0}, TypeError, "neighbours is 0.0; it should be an integer"),
        ({"neighbours": 1.5}, TypeError, "neighbours is 1.5; it should be"),
    ],
)
def test_wrong_settings(change, error, message):
    with pytest.raises(error, match=message):
        TeacherLoss(**change)


def test_exports():
    assert functional.intra_class_contrastive is intra_class_contrastive
    for name in functional.__all__:
        assert hasattr(reference, name)
