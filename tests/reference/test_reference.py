"""The definition against independent computations: loops over rows, and other libraries."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from icckd import reference


def rows(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def loss_by_loops(anchor, positive, labels, gate, memory, memory_labels, temperature, normalize):
    """g_i ℓ_i of every row, straight from the definition, in Python floats."""

    def similarity(x, y):
        x, y = x.tolist(), y.tolist()
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        norms = math.hypot(*x) * math.hypot(*y) if normalize else 1
        return dot / norms / temperature if norms else 0.0

    losses = []
    for i, label in enumerate(labels.tolist()):
        negatives = [anchor[j] for j, other in enumerate(labels.tolist()) if j != i and other == label]
        negatives += [memory[j] for j, other in enumerate(memory_labels.tolist()) if other == label]
        own = math.exp(similarity(anchor[i], positive[i]))
        total = own + sum(math.exp(similarity(anchor[i], x)) for x in negatives)
        losses.append(0.0 if label < 0 else -gate[i].item() * math.log(own / total))
    return losses


@pytest.mark.parametrize("normalize", [True, False])
def test_intra_class_is_the_definition(generator, normalize):
    anchor, positive, memory = rows(generator, 12, 3), rows(generator, 12, 3), rows(generator, 6, 3)
    anchor[4] = 0
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, -1, -5, 0, 1, 3])
    memory_labels = torch.tensor([0, 1, 1, -1, 7, 2])
    gate = torch.rand(12, generator=generator, dtype=torch.float64).masked_fill(labels == 0, 0.5)
    gate[1] = 0
    data = dict(gate=gate, memory=memory, memory_labels=memory_labels, temperature=0.7, normalize=normalize)
    expected = torch.tensor(loss_by_loops(anchor, positive, labels, **data), dtype=torch.float64)

    none, total, mean = (
        reference.intra_class_contrastive(anchor, positive, labels, **data, reduction=reduction)
        for reduction in ("none", "sum", "mean")
    )
    torch.testing.assert_close(none, expected)
    torch.testing.assert_close(total, expected.sum())
    torch.testing.assert_close(mean, expected.sum() / gate[labels >= 0].sum())


def test_intra_class_derivatives(generator):
    labels = torch.tensor([0, 0, 1, 1, 1, 2, -1])
    memory, memory_labels = rows(generator, 3, 3), torch.tensor([0, 2, -1])
    gate = torch.tensor([1, 0.5, 2, 0, 1, 1, 1], dtype=torch.float64)

    def loss(anchor, positive, temperature):
        return reference.intra_class_contrastive(
            anchor,
            positive,
            labels,
            gate=gate,
            memory=memory,
            memory_labels=memory_labels,
            temperature=temperature,
            reduction="none",
        )

    inputs = [rows(generator, 7, 3), rows(generator, 7, 3), torch.tensor(0.5, dtype=torch.float64)]
    inputs = [x.requires_grad_() for x in inputs]
    assert gradcheck(loss, inputs)
    assert gradgradcheck(loss, inputs)


def test_intra_class_zero_row_has_no_gradient(generator):
    anchor, positive = rows(generator, 4, 3), rows(generator, 4, 3)
    anchor[0], positive[1] = 0, 0
    anchor.requires_grad_()
    positive.requires_grad_()
    reference.intra_class_contrastive(anchor, positive, torch.zeros(4, dtype=torch.long)).backward()
    assert torch.equal(anchor.grad[0], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(positive.grad[1], torch.zeros(3, dtype=torch.float64))
    assert anchor.grad.isfinite().all()
    assert positive.grad[0].isfinite().all()


def test_intra_class_refuses_labels_beyond_num_classes(generator):
    x = rows(generator, 2, 3)
    with pytest.raises(ValueError, match="num_classes is 3, but labels reach 3"):
        reference.intra_class_contrastive(x, x, torch.tensor([0, 3]), num_classes=3)


def margin_by_loops(logits, labels, space):
    margins = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        values = (row.exp() / row.exp().sum() if space == "probability" else row).tolist()
        others = [value for c, value in enumerate(values) if c != label]
        margins.append(-math.inf if label == -100 else values[label] - max(others))
    return torch.tensor(margins)


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_classification_margin(generator, space):
    logits, labels = rows(generator, 6, 4), torch.tensor([0, 1, 2, 3, -100, 1])
    margin = reference.classification_margin(logits, labels, space=space)
    torch.testing.assert_close(margin, margin_by_loops(logits, labels, space))
    only_class = reference.classification_margin(logits[:, :1], torch.zeros(6, dtype=torch.long), space=space)
    assert only_class.tolist() == [1 if space == "probability" else math.inf] * 6


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_cross_entropy(generator, reduction):
    logits, labels = rows(generator, 5, 4), torch.tensor([0, 3, -100, 1, 1])
    loss, margin = reference.cross_entropy_with_margin(logits, labels, label_smoothing=0.3, reduction=reduction)
    target = 0.7 * F.one_hot(labels.clamp(min=0), 4) + 0.3 / 4
    expected = -(target * logits.log_softmax(1)).sum(1) * (labels != -100)
    expected = {"none": expected, "sum": expected.sum(), "mean": expected.sum() / 4}[reduction]
    torch.testing.assert_close(loss, expected)
    assert torch.equal(margin, reference.classification_margin(logits, labels))


@pytest.mark.parametrize("standardize", [False, True])
def test_kd_kl(generator, standardize):
    student, teacher = rows(generator, 5, 7), rows(generator, 5, 7)
    expected = []
    for pair in zip(student, teacher, strict=True):
        s, t = ((x - x.mean()) / (x.std() + 1e-7) if standardize else x for x in pair)
        p, q = ((x / 3).exp() / (x / 3).exp().sum() for x in (s, t))
        expected.append(9 * (q * (q / p).log()).sum())
    expected = torch.stack(expected)
    for reduction, value in (("none", expected), ("sum", expected.sum()), ("batchmean", expected.mean())):
        loss = reference.kd_kl(student, teacher, temperature=3.0, standardize=standardize, reduction=reduction)
        torch.testing.assert_close(loss, value)


def test_rkd(generator):
    student, teacher = rows(generator, 5, 3), rows(generator, 5, 4)
    student[3] = student[1]

    def distances(x):
        table = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        return table / table[table > 0].mean()

    def angles(x):
        unit = [[F.normalize(x[i] - x[j], dim=0) for i in range(5)] for j in range(5)]
        return torch.tensor([[[a.dot(b) for b in vertex] for a in vertex] for vertex in unit], dtype=x.dtype)

    for function, relation in ((reference.rkd_distance, distances), (reference.rkd_angle, angles)):
        difference = (relation(student) - relation(teacher)).abs()
        expected = torch.where(difference < 1, 0.5 * difference**2, difference - 0.5).mean()
        torch.testing.assert_close(function(student, teacher), expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: reference.kd_kl(x, y, standardize=True),
        reference.rkd_distance,
        reference.rkd_angle,
        lambda x, y: reference.cross_entropy_with_margin(x, torch.tensor([0, 2, -100, 1]))[0],
    ],
    ids=["kd_kl", "rkd_distance", "rkd_angle", "cross_entropy"],
)
def test_other_derivatives(generator, function):
    student, teacher = rows(generator, 4, 3).requires_grad_(), rows(generator, 4, 3)
    assert gradcheck(lambda x: function(x, teacher), student)
    assert gradgradcheck(lambda x: function(x, teacher), student)


def test_teacher_has_no_gradient(generator):
    student, teacher = (rows(generator, 4, 3).requires_grad_() for _ in range(2))
    for function in (reference.kd_kl, reference.rkd_distance, reference.rkd_angle):
        function(student, teacher).backward()
        assert teacher.grad is None


def test_equal_points_and_empty_batches_have_finite_gradients():
    for count in (0, 1, 3):
        student, teacher = torch.ones(count, 2, requires_grad=True), torch.ones(count, 2)
        for function in (reference.rkd_distance, reference.rkd_angle, reference.kd_kl):
            loss = function(student, teacher)
            loss.backward()
            assert loss.item() == 0
            assert student.grad.abs().sum() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_result_dtypes(generator, dtype):
    x, y = rows(generator, 4, 3).to(dtype), rows(generator, 4, 3).to(dtype)
    labels = torch.tensor([0, 0, 1, 1])
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert reference.intra_class_contrastive(x, y, labels).dtype == wanted
    assert reference.cross_entropy_with_margin(x, labels)[0].dtype == wanted
    assert reference.kd_kl(x, y).dtype == reference.rkd_distance(x, y).dtype == wanted
    assert reference.rkd_angle(x, y).dtype == wanted
    assert reference.classification_margin(x, labels).dtype == torch.float32
