"""dkd, nkd, ttm and dist against the definitions in float64."""

import pytest
import torch

from icckd import BackendUnavailable, backends, reference
from icckd.functional import dist, dkd, nkd, ttm
from tests.conftest import CPU_BACKENDS
from tests.problems import SMALL, assert_as_accurate, logits_and_labels, loss_and_gradient, student_and_teacher

SIZES = [(1, 1), (7, 2), (31, 17), (3, 1000)]
FAMILIES = {dkd: "rest_divergence", nkd: "rest_divergence", ttm: "transformed_teacher", dist: "dist"}
OPTIONS = {
    dkd: [{"alpha": 0.5, "beta": 2.0, "temperature": 2.5}],
    nkd: [{"temperature": 3.0}, {"gamma": 0.5, "temperature": 1.0}],
    ttm: [{"gamma": 0.3, "weighted": False}, {"weighted": True}],
    dist: [{"temperature": 2.0, "beta": 0.5}],
}


def serving(function):
    """The backends that compute this function on this machine's CPU."""
    family = FAMILIES[function]
    return [x for x in CPU_BACKENDS if backends.why_not(x, torch.device("cpu"), torch.float32, family) is None]


def calls(functions=(dkd, nkd, ttm, dist)):
    """Every function with every backend that has it; Triton's interpreter takes its time."""
    return [
        pytest.param(function, name, id=f"{function.__name__}-{name}", marks=[pytest.mark.slow] * (name == "triton"))
        for function in functions
        for name in serving(function)
    ]


def problem(rows, classes, dtype=torch.float32, **options):
    student, teacher = student_and_teacher(rows, classes, dtype=dtype, **options)
    return student, teacher, logits_and_labels(rows, classes, ignored=False)[1]


def with_labels(function, labels):
    """The function of two matrices alone, whether it takes labels or not."""
    if function.__name__ in ("dkd", "nkd"):
        return lambda student, teacher, **options: function(student, teacher, labels, **options)
    return function


def both(function, labels):
    return with_labels(function, labels), with_labels(getattr(reference, function.__name__), labels)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
@pytest.mark.parametrize(("function", "backend"), calls())
def test_is_as_accurate_as_the_definition(function, backend, rows, classes, dtype):
    student, teacher, labels = problem(rows, classes, dtype)
    ours, definition = both(function, labels)
    for options in OPTIONS[function]:
        loss, gradient = loss_and_gradient(ours, student, teacher, backend=backend, **options)
        exact = loss_and_gradient(definition, student.double(), teacher.double(), **options)
        single = loss_and_gradient(definition, student, teacher, **options)
        assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
        assert_as_accurate(loss, single[0], exact[0], slack=2e-6 * float(exact[0].abs()) + 1e-6)
        assert_as_accurate(gradient, single[1], exact[1], slack=2e-6 * float(exact[1].abs().max()) + 1e-6 / rows)
        torch.testing.assert_close(ours(student, teacher, backend=backend, **options), loss)


@pytest.mark.parametrize("function", [dkd, nkd, ttm, dist], ids=lambda f: f.__name__)
def test_gradcheck(function):
    student, teacher, labels = problem(3, 4, torch.float64)
    ours, _ = both(function, labels)
    for options in OPTIONS[function]:
        assert torch.autograd.gradcheck(lambda x, o=options: ours(x, teacher, **o), student.requires_grad_())


@pytest.mark.parametrize(("function", "backend"), calls())
def test_huge_logits(function, backend):
    # Beyond, columns of dist whose numbers have underflowed in float32 alone differ.
    student, teacher, labels = problem(15, 21, scale=20.0 if function is dist else 1e4)
    ours, definition = both(function, labels)
    loss, gradient = loss_and_gradient(ours, student, teacher, backend=backend)
    exact = loss_and_gradient(definition, student.double(), teacher.double())
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("function", "backend"), calls((dkd, nkd, ttm)))
def test_large_logits_keep_their_differences(function, backend):
    student, teacher, labels = problem(8, 21)
    student, teacher = ((x * 1024).round() / 1024 + 4096 for x in (student, teacher))
    ours, definition = both(function, labels)
    options = OPTIONS[function][0]
    loss, gradient = loss_and_gradient(ours, student, teacher, backend=backend, **options)
    exact = loss_and_gradient(definition, student.double(), teacher.double(), **options)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-5, atol=1e-5 * float(exact[1].abs().max()))


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_dist_of_huge_logits_is_finite(scale):
    student, teacher, _ = problem(15, 21, scale=scale)
    loss, gradient = loss_and_gradient(dist, student, teacher)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [32.0, 1e4, 1e7])
@pytest.mark.parametrize(("function", "backend"), calls((dkd, nkd, dist)))
def test_high_temperatures(function, backend, temperature):
    student, teacher, labels = problem(8, 50)
    ours, definition = both(function, labels)
    loss, gradient = loss_and_gradient(ours, student, teacher, temperature=temperature, backend=backend)
    exact = loss_and_gradient(definition, student.double(), teacher.double(), temperature=temperature)
    assert (loss.dtype, gradient.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-4, atol=1e-7 * float(exact[1].abs().max()))


@pytest.mark.parametrize(("function", "backend"), calls((dkd, nkd, ttm)))
def test_classes_that_the_teacher_rules_out(function, backend):
    """They add nothing where the student rules them out, too, and are as in float64 where it does not."""
    student, teacher, labels = problem(8, 20)
    labels = labels - labels % 3 + 1
    labels = labels.clamp(max=19)
    hidden = torch.arange(20) % 3 == 0
    teacher = teacher.masked_fill(hidden, -torch.inf)
    ours, definition = both(function, labels)
    for s in (student, student.masked_fill(hidden, -torch.inf)):
        loss, gradient = loss_and_gradient(ours, s, teacher, backend=backend)
        exact = loss_and_gradient(definition, s.double(), teacher.double())
        torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-5, atol=1e-6)
    loss, gradient = loss_and_gradient(ours, student.masked_fill(~hidden, -torch.inf), teacher, backend=backend)
    assert loss == torch.inf


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize(("function", "backend"), calls((dkd, nkd)))
def test_without_another_class_the_rest_adds_nothing(function, backend, classes):
    student, teacher, _ = problem(4, classes)
    teacher[1:, 1:] = -torch.inf
    labels = torch.zeros(4, dtype=torch.int64)
    ours, definition = both(function, labels)
    loss, gradient = loss_and_gradient(ours, student, teacher, backend=backend)
    exact = loss_and_gradient(definition, student.double(), teacher.double())
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("function", "backend"), calls((dkd, dist)))
def test_a_student_equal_to_its_teacher_has_no_loss(function, backend, dtype):
    student, _, labels = problem(9, 50, dtype)
    ours, _ = both(function, labels)
    loss, gradient = loss_and_gradient(ours, student, student, backend=backend)
    torch.testing.assert_close(loss, torch.tensor(0.0), rtol=0, atol=2e-5)
    torch.testing.assert_close(gradient, torch.zeros_like(student), rtol=0, atol=2e-6)


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize(("function", "backend"), calls())
def test_divergence_stays_visible(function, backend, who):
    student, teacher, labels = problem(3, 33)
    (student if who == "student" else teacher)[1, 32] = torch.nan
    ours, _ = both(function, labels)
    loss, gradient = loss_and_gradient(ours, student, teacher, backend=backend)
    assert loss.isnan()
    assert gradient[1].isnan().all()


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str)
@pytest.mark.parametrize(("function", "backend"), calls())
def test_two_dtypes(function, backend, dtypes):
    student, teacher, labels = problem(10, 25)
    student, teacher = student.to(dtypes[0]), teacher.to(dtypes[1])
    ours, definition = both(function, labels)
    loss, gradient = loss_and_gradient(ours, student, teacher, backend=backend)
    exact = loss_and_gradient(definition, student.double(), teacher.double())
    assert (loss.dtype, gradient.dtype) == (torch.float32, student.dtype)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, exact[1].to(student.dtype), rtol=1e-2, atol=1e-5)
    assert ours(student, teacher.double()).dtype == torch.float64


@pytest.mark.parametrize(("function", "backend"), calls())
def test_no_rows(function, backend):
    student, teacher, labels = problem(0, 5)
    ours, _ = both(function, labels)
    loss, gradient = loss_and_gradient(ours, student, teacher, backend=backend)
    assert loss == 0
    assert gradient.shape == (0, 5)


@pytest.mark.parametrize(("function", "backend"), calls())
def test_any_strides_and_labels_and_upstream_gradients(function, backend):
    student, teacher, labels = problem(12, 9)
    expected = loss_and_gradient(both(function, labels)[0], student, teacher, torch.tensor(-3.0), backend=backend)
    s, t = student.T.contiguous().T, torch.stack([teacher, teacher], dim=2).flatten(1)[:, ::2]
    for narrow in (labels.to(torch.uint8), labels.to(torch.int16), torch.stack([labels, labels], 1)[:, 0]):
        ours, _ = both(function, narrow)
        actual = loss_and_gradient(ours, s, t, torch.tensor(-3.0), backend=backend)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("function", "backend"), calls())
def test_under_autocast_and_without_gradient(function, backend):
    student, teacher, labels = (x for x in problem(8, 6))
    teacher.requires_grad_()
    ours, _ = both(function, labels)
    expected = loss_and_gradient(ours, student, teacher, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss_and_gradient(ours, student, teacher, backend=backend)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert teacher.grad is None
    assert not ours(student, teacher, backend=backend).requires_grad
    with torch.no_grad():
        assert not ours(student.clone().requires_grad_(), teacher, backend=backend).requires_grad


@pytest.mark.parametrize(("function", "backend"), calls((dkd, nkd, ttm)))
def test_float16_gradients_do_not_underflow_under_a_loss_scale(function, backend):
    student, teacher, labels = problem(1024, 20, torch.float16, scale=0.5)
    ours, definition = both(function, labels)
    scale = torch.tensor(2.0**12)
    _, gradient = loss_and_gradient(ours, student, teacher, scale, backend=backend)
    _, exact = loss_and_gradient(definition, student.double(), teacher.double(), scale)
    torch.testing.assert_close(gradient.double(), exact, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("function", [dkd, nkd], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student_logits": None}, TypeError, "student_logits is a NoneType"),
        ({"student_logits": torch.zeros(4)}, ValueError, r"student_logits has shape \(4,\)"),
        ({"teacher_logits": torch.zeros(4, 6)}, ValueError, r"teacher_logits has shape \(4, 6\)"),
        ({"student_logits": torch.zeros(4, 0), "teacher_logits": torch.zeros(4, 0)}, ValueError, "at least one class"),
        ({"labels": torch.zeros(4)}, TypeError, "labels has dtype torch.float32"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels has shape \(3,\)"),
        ({"labels": torch.zeros(4, dtype=torch.int64, device="meta")}, ValueError, "labels is on meta"),
        ({"labels": torch.tensor([0, 1, 5, 2])}, ValueError, r"labels holds 5; each should be in \[0, 5\)"),
        ({"labels": torch.tensor([0, -100, 1, 2])}, ValueError, "labels holds -100"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
        ({"backend": "cuda"}, BackendUnavailable, "backend 'cuda' cannot run here"),
    ],
)
def test_wrong_arguments_with_labels(function, change, error, message):
    arguments = {"student_logits": torch.zeros(4, 5), "teacher_logits": torch.zeros(4, 5)}
    with pytest.raises(error, match=message):
        function(**arguments | {"labels": torch.zeros(4, dtype=torch.int64)} | change)


@pytest.mark.parametrize(
    ("function", "change", "error", "message"),
    [
        (dkd, {"alpha": -1.0}, ValueError, "alpha is -1.0; it should be a finite number of 0 or more"),
        (dkd, {"beta": "8"}, TypeError, "beta is '8'"),
        (nkd, {"gamma": float("inf")}, ValueError, "gamma is inf"),
        (ttm, {"gamma": 0.0}, ValueError, "gamma is 0.0; it should be a finite number above 0"),
        (ttm, {"teacher_logits": torch.zeros(3, 5)}, ValueError, r"teacher_logits has shape \(3, 5\)"),
        (dist, {"beta": -0.5}, ValueError, "beta is -0.5"),
        (dist, {"gamma": float("nan")}, ValueError, "gamma is nan"),
        (dist, {"temperature": -1}, ValueError, "temperature is -1"),
        (dist, {"backend": "cpu"}, BackendUnavailable, "no kernel for dist; 'reference' can compute it"),
    ],
)
def test_wrong_settings(function, change, error, message):
    arguments = {"student_logits": torch.zeros(4, 5), "teacher_logits": torch.zeros(4, 5)}
    if function in (dkd, nkd):
        arguments["labels"] = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(error, match=message):
        function(**arguments | change)
