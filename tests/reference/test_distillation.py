"""The definitions of the distillation losses against loops in Python floats, and the identities between them."""

import math
from itertools import chain

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from icckd import reference

LABELS = torch.tensor([2, 0, 4, 1, 1, 3])


def pair(generator, *shape, scale=2.0):
    return tuple(scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64))


def maps(generator):
    return torch.randn(3, 2, 4, 5, generator=generator).double(), torch.randn(3, 7, 4, 5, generator=generator).double()


# --- by loops ---------------------------------------------------------------------------------------------------------


def softmax(row, temperature=1.0):
    powers = [math.exp(x / temperature) for x in row]
    return [x / sum(powers) for x in powers]


def without(row, label):
    return [x for c, x in enumerate(row) if c != label]


def kl(q, p):
    return sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))


def mean(numbers):
    numbers = list(numbers)
    return sum(numbers) / len(numbers)


def dkd_by_loops(student, teacher, labels, alpha, beta, temperature):
    def row(s, t, y):
        p, q = softmax(s, temperature), softmax(t, temperature)
        of_label = kl([q[y], 1 - q[y]], [p[y], 1 - p[y]])
        of_rest = kl(softmax(without(t, y), temperature), softmax(without(s, y), temperature))
        return temperature**2 * (alpha * of_label + beta * of_rest)

    return mean(map(row, student, teacher, labels))


def nkd_by_loops(student, teacher, labels, gamma, temperature):
    def row(s, t, y):
        p, q = softmax(without(s, y), temperature), softmax(without(t, y), temperature)
        of_rest = sum(a * math.log(b) for a, b in zip(q, p, strict=True))
        return -softmax(t)[y] * math.log(softmax(s)[y]) - gamma * temperature**2 * of_rest

    return mean(map(row, student, teacher, labels))


def ttm_by_loops(student, teacher, gamma, weighted):
    def row(s, t):
        powers = [q**gamma for q in softmax(t)]
        z = sum(powers)
        return (z if weighted else 1) * kl([x / z for x in powers], softmax(s))

    return mean(map(row, student, teacher))


def pearson(x, y):
    u, v = [a - mean(x) for a in x], [b - mean(y) for b in y]
    return sum(a * b for a, b in zip(u, v, strict=True)) / (math.hypot(*u) * math.hypot(*v))


def dist_by_loops(student, teacher, beta, gamma, temperature):
    p, q = [softmax(x, temperature) for x in student], [softmax(x, temperature) for x in teacher]
    rows = 1 - mean(map(pearson, p, q))
    columns = 1 - mean(map(pearson, zip(*p, strict=True), zip(*q, strict=True)))
    return temperature**2 * (beta * rows + gamma * columns)


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def similarity_preserving_by_loops(student, teacher):
    def relation(rows):
        gram = [[dot(x, y) for y in rows] for x in rows]
        return [[entry / math.hypot(*row) for entry in row] for row in gram]

    entries = zip(chain(*relation(student)), chain(*relation(teacher)), strict=True)
    return sum((a - b) ** 2 for a, b in entries) / len(student) ** 2


def pkt_by_loops(student, teacher):
    def relation(rows):
        rows = [[x / (math.hypot(*row) + 1e-7) for x in row] for row in rows]
        cosines = [[(dot(x, y) + 1) / 2 for y in rows] for x in rows]
        return [entry / sum(row) for row in cosines for entry in row]

    entries = zip(relation(student), relation(teacher), strict=True)
    return mean(q * math.log((q + 1e-7) / (p + 1e-7)) for p, q in entries)


def attention_by_loops(student, teacher):
    def attention(image):
        channels = [list(chain(*rows)) for rows in image]
        energy = [mean(x * x for x in place) for place in zip(*channels, strict=True)]
        return [x / math.hypot(*energy) for x in energy]

    pairs = zip(map(attention, student), map(attention, teacher), strict=True)
    return mean((a - b) ** 2 for s, t in pairs for a, b in zip(s, t, strict=True))


@pytest.mark.parametrize(
    ("function", "by_loops", "options"),
    [
        (reference.dkd, dkd_by_loops, {"alpha": 0.7, "beta": 3.0, "temperature": 2.5}),
        (reference.nkd, nkd_by_loops, {"gamma": 2.0, "temperature": 3.0}),
        (reference.ttm, ttm_by_loops, {"gamma": 0.3, "weighted": False}),
        (reference.ttm, ttm_by_loops, {"gamma": 0.3, "weighted": True}),
        (reference.dist, dist_by_loops, {"beta": 0.5, "gamma": 2.0, "temperature": 3.0}),
    ],
)
def test_of_predictions(generator, function, by_loops, options):
    student, teacher = pair(generator, 6, 5)
    labels = [LABELS] if "labels" in by_loops.__code__.co_varnames else []
    expected = by_loops(student.tolist(), teacher.tolist(), *(x.tolist() for x in labels), **options)
    torch.testing.assert_close(function(student, teacher, *labels, **options).item(), expected)


@pytest.mark.parametrize(
    ("function", "by_loops"),
    [
        (reference.similarity_preserving, similarity_preserving_by_loops),
        (reference.pkt, pkt_by_loops),
    ],
)
def test_of_relations(generator, function, by_loops):
    student, teacher = torch.randn(6, 2, 3, generator=generator).double(), pair(generator, 6, 5)[1]
    expected = by_loops(student.flatten(1).tolist(), teacher.tolist())
    torch.testing.assert_close(function(student, teacher).item(), expected)


def test_of_maps(generator):
    student, teacher = maps(generator)
    expected = attention_by_loops(student.tolist(), teacher.tolist())
    torch.testing.assert_close(reference.attention_transfer(student, teacher).item(), expected)


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_weighted_by_what_the_teacher_leaves_the_others_is_kd(generator, temperature):
    student, teacher = pair(generator, 6, 5)
    rest = 1 - (teacher / temperature).softmax(1)[torch.arange(6), LABELS]
    options = {"alpha": 1.0, "temperature": temperature}
    rows = [
        reference.dkd(student[i : i + 1], teacher[i : i + 1], LABELS[i : i + 1], beta=float(rest[i]), **options)
        for i in range(6)
    ]
    torch.testing.assert_close(torch.stack(rows).mean(), reference.kd_kl(student, teacher, temperature=temperature))


def test_ttm_is_kds_teacher_against_an_unsoftened_student(generator):
    student, teacher = pair(generator, 6, 5)
    kd = reference.kd_kl(4.0 * student, teacher, temperature=4.0) / 16
    torch.testing.assert_close(reference.ttm(student, teacher, gamma=0.25), kd)


def equal_to_its_teacher(generator):
    logits, _ = pair(generator, 6, 5)
    features, image = torch.randn(6, 7, generator=generator).double(), maps(generator)[0]
    return {
        "dkd": reference.dkd(logits, logits, LABELS),
        "dist": reference.dist(logits, logits),
        "dist of one row": reference.dist(logits[:1], logits[:1]),
        "dist of one class": reference.dist(logits[:, :1], logits[:, :1]),
        "rkd_distance": reference.rkd_distance(features, features),
        "rkd_angle": reference.rkd_angle(features, features),
        "similarity_preserving": reference.similarity_preserving(features, features),
        "pkt": reference.pkt(features, features),
        "attention_transfer": reference.attention_transfer(image, image),
    }


def test_a_student_equal_to_its_teacher_has_no_loss(generator):
    for name, loss in equal_to_its_teacher(generator).items():
        assert abs(loss.item()) < 1e-12, name


# --- derivatives and edges --------------------------------------------------------------------------------------------

PREDICTIONS = {
    "dkd": lambda s, t: reference.dkd(s, t, LABELS[: len(s)], beta=2.0),
    "nkd": lambda s, t: reference.nkd(s, t, LABELS[: len(s)], temperature=2.0),
    "ttm": lambda s, t: reference.ttm(s, t, weighted=True),
    "dist": lambda s, t: reference.dist(s, t, temperature=2.0),
}
FUNCTIONS = {
    **PREDICTIONS,
    "similarity_preserving": reference.similarity_preserving,
    "pkt": reference.pkt,
    "attention_transfer": lambda s, t: reference.attention_transfer(s[:, :, None, None], t[:, :, None, None]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(generator, name):
    student, teacher = pair(generator, 4, 5)
    function = FUNCTIONS[name]
    if name == "attention_transfer":
        student, teacher = maps(generator)
        function = reference.attention_transfer
    assert gradcheck(lambda x: function(x, teacher), student.requires_grad_())
    assert gradgradcheck(lambda x: function(x, teacher), student)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_equal_numbers_have_finite_gradients(name, rows):
    for value in (0.0, 3.0):
        student, teacher = torch.full((rows, 5), value, requires_grad=True), torch.ones(rows, 5, requires_grad=True)
        loss = FUNCTIONS[name](student, teacher)
        loss.backward()
        assert loss.isfinite()
        assert student.grad.isfinite().all()
        assert teacher.grad is None


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_classes_that_a_teacher_rules_out_are_as_if_they_were_not_there(generator, name):
    student, teacher = pair(generator, 4, 5)
    function, labels = getattr(reference, name), torch.tensor([0, 1, 2, 0])
    teacher[:, 3:] = -torch.inf
    student[:, 3:] = -torch.inf
    student.requires_grad_()
    loss = function(student, teacher, labels)
    loss.backward()
    torch.testing.assert_close(loss, function(student[:, :3], teacher[:, :3], labels))
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_without_another_class_the_rest_adds_nothing(generator, name, classes):
    student, teacher = pair(generator, 4, classes)
    teacher[:, 1:] = -torch.inf
    student.requires_grad_()
    loss = getattr(reference, name)(student, teacher, torch.zeros(4, dtype=torch.int64), temperature=2.0)
    loss.backward()
    # q_y = 1: the divergence, or cross-entropy, of the label alone; nkd takes that at temperature 1.
    temperature, factor = (2.0, 4.0) if name == "dkd" else (1.0, 1.0)
    torch.testing.assert_close(loss, -factor * (student / temperature).log_softmax(1)[:, 0].mean())
    assert student.grad.isfinite().all()


def test_constant_rows_and_columns_have_no_correlation(generator):
    student, teacher = pair(generator, 4, 5)
    student[1] = 0.3
    teacher[2] = student[2] = -1.0
    by_hand = [
        pearson(softmax(s), softmax(t)) for s, t in zip(student[::3].tolist(), teacher[::3].tolist(), strict=True)
    ]
    expected = 1 - (sum(by_hand) + 0 + 1) / 4
    torch.testing.assert_close(reference.dist(student, teacher, gamma=0.0).item(), expected)
    same_student = student[:1].expand(4, 5)
    torch.testing.assert_close(reference.dist(same_student, teacher, beta=0.0).item(), 1.0)
    torch.testing.assert_close(reference.dist(same_student, teacher[:1].expand(4, 5), beta=0.0).item(), 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_result_dtypes(generator, dtype):
    student, teacher = (x.to(dtype) for x in pair(generator, 4, 5))
    for name, function in FUNCTIONS.items():
        assert function(student, teacher).dtype == torch.promote_types(dtype, torch.float32), name
