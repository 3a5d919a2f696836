"""kd_kl, rkd_distance and rkd_angle against PyTorch, the definitions in float64, and a loop over all triples."""

import pytest
import torch
import torch.nn.functional as F

from icckd import reference
from icckd.functional import kd_kl, rkd_angle, rkd_distance
from tests.problems import SMALL, assert_as_accurate, loss_and_gradient
from tests.problems import student_and_teacher as make

KD_SIZES = [(1, 1), (7, 2), (5, 3), (31, 17), (64, 100), (3, 1000), (2, 5003)]
RKD_SIZES = [(1, 3, 2), (2, 1, 1), (3, 5, 7), (17, 31, 13), (37, 64, 10), (64, 5, 128), (13, 257, 3)]
RELATIONAL = {"rkd_distance": rkd_distance, "rkd_angle": rkd_angle}


def angle_loss_by_triples(student, teacher):
    def cosines(x):
        for j in range(len(x)):
            for i in range(len(x)):
                for k in range(len(x)):
                    a, b = x[i] - x[j], x[k] - x[j]
                    lengths = a.norm() * b.norm()
                    yield a.dot(b) / lengths if lengths > 0 else lengths.new_zeros(())

    pairs = zip(cosines(student), cosines(teacher), strict=True)
    return torch.stack([F.smooth_l1_loss(s, t) for s, t in pairs]).mean()


# --- kd_kl ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "classes"), KD_SIZES)
def test_kd_kl_is_as_accurate_as_the_definition(backend, rows, classes, dtype, standardize, reduction):
    if classes == 1 and standardize:
        pytest.skip("the standard deviation of one number is undefined; see test_kd_kl_of_a_single_class")
    student, teacher = make(rows, classes, dtype=dtype)
    options = {"standardize": standardize, "reduction": reduction, "temperature": 2.5}
    upstream = torch.randn(rows, generator=torch.Generator().manual_seed(1)) if reduction == "none" else None
    loss, gradient = loss_and_gradient(kd_kl, student, teacher, upstream, backend=backend, **options)
    exact = loss_and_gradient(reference.kd_kl, student.double(), teacher.double(), upstream, **options)
    single = loss_and_gradient(reference.kd_kl, student, teacher, upstream, **options)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert_as_accurate(loss, single[0], exact[0], slack=2e-6 * float(exact[0].abs().max()) + 1e-6)
    rounding = 1e-6 / (rows if reduction == "batchmean" else 1)
    assert_as_accurate(gradient, single[1], exact[1], slack=2e-6 * float(exact[1].abs().max()) + rounding)


def test_kd_kl_is_pytorchs_kl_div(backend):
    student, teacher = make(12, 30)
    log_p, log_q = (x.double().div(3).log_softmax(1) for x in (student, teacher))
    expected = 9 * F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    loss = kd_kl(student, teacher, temperature=3.0, backend=backend)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("standardize", [False, True])
def test_kd_kl_of_equal_logits_is_zero(backend, standardize):
    student, _ = make(9, 50)
    loss, gradient = loss_and_gradient(kd_kl, student, student, standardize=standardize, backend=backend)
    torch.testing.assert_close(loss, torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, torch.zeros_like(student), rtol=0, atol=1e-6)


@pytest.mark.parametrize("standardize", [False, True])
def test_kd_kl_of_a_single_class(backend, standardize):
    student, teacher = make(4, 1)
    loss, gradient = loss_and_gradient(kd_kl, student, teacher, standardize=standardize, backend=backend)
    assert loss == 0
    assert gradient.eq(0).all()


def test_kd_kl_of_constant_rows_under_standardisation(backend):
    """A row without spread standardises to zeros: the definition's value, and no NaN."""
    student, teacher = make(6, 40)
    teacher[2] = 5.0
    loss, gradient = loss_and_gradient(kd_kl, student, teacher, standardize=True, backend=backend)
    exact = loss_and_gradient(reference.kd_kl, student.double(), teacher.double(), standardize=True)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-5, atol=1e-6)
    student[2] = -1.0
    loss, gradient = loss_and_gradient(kd_kl, student, teacher, standardize=True, backend=backend)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_kd_kl_of_huge_logits(backend, scale):
    student, teacher = make(15, 21, scale=scale)
    loss, gradient = loss_and_gradient(kd_kl, student, teacher, backend=backend)
    exact = loss_and_gradient(reference.kd_kl, student.double(), teacher.double())
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("temperature", [32.0, 1e4, 1e7])
def test_kd_kl_keeps_its_value_at_high_temperatures(backend, temperature, dtype, standardize, reduction):
    student, teacher = make(8, 100, dtype=dtype)
    upstream = None if reduction == "batchmean" else torch.ones(8)
    options = {"temperature": temperature, "standardize": standardize, "reduction": reduction}
    loss, gradient = loss_and_gradient(kd_kl, student, teacher, upstream, backend=backend, **options)
    exact, exact_gradient = loss_and_gradient(reference.kd_kl, student.double(), teacher.double(), upstream, **options)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=rounding, atol=6e-8 if rounding > 9e-4 else 1e-9)


@pytest.mark.parametrize("temperature", [1e6, 1e8])
def test_kd_kl_tends_to_the_variance_of_the_difference(backend, temperature):
    """As T grows, T² KL tends to half the variance of student − teacher over the classes."""
    student, teacher = make(8, 100)
    half_variance = (student - teacher).double().var(1, correction=0) / 2
    options = {"temperature": temperature, "reduction": "none"}
    rows = kd_kl(student, teacher, backend=backend, **options)
    torch.testing.assert_close(rows.double(), half_variance, rtol=1e-5, atol=0)
    exact = reference.kd_kl(student.double(), teacher.double(), **options)
    torch.testing.assert_close(exact, half_variance, rtol=1e-5, atol=0)


def test_kd_kl_of_masked_classes(backend):
    """A class that both rule out adds nothing; one that only the student rules out makes the loss infinite, not NaN."""
    student, teacher = make(8, 20)
    hidden = torch.zeros(20, dtype=torch.bool)
    hidden[::3] = True
    for reduction in ("sum", "none"):
        masked = [x.masked_fill(hidden, -torch.inf) for x in (student, teacher)]
        loss, gradient = loss_and_gradient(kd_kl, *masked, reduction=reduction, backend=backend)
        expected = loss_and_gradient(
            reference.kd_kl, student[:, ~hidden].double(), teacher[:, ~hidden].double(), reduction=reduction
        )
        torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient[:, ~hidden].double(), expected[1], rtol=1e-5, atol=1e-6)
        assert gradient[:, hidden].eq(0).all()
    loss, gradient = loss_and_gradient(kd_kl, masked[0], teacher, backend=backend)
    assert loss == torch.inf
    assert gradient.isfinite().all()


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("standardize", [False, True])
def test_kd_kl_divergence_stays_visible(backend, standardize, who):
    student, teacher = make(3, 33)
    (student if who == "student" else teacher)[1, 32] = torch.nan
    options = {"standardize": standardize, "reduction": "none", "backend": backend}
    loss, gradient = loss_and_gradient(kd_kl, student, teacher, **options)
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str)
def test_kd_kl_of_two_dtypes(backend, dtypes):
    student, teacher = (x.to(d) for x, d in zip(make(10, 25), dtypes, strict=True))
    loss, gradient = loss_and_gradient(kd_kl, student, teacher, backend=backend)
    exact = loss_and_gradient(reference.kd_kl, student.double(), teacher.double())
    assert (loss.dtype, gradient.dtype) == (torch.float32, student.dtype)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, exact[1].to(student.dtype), rtol=1e-2, atol=1e-6)


def test_kd_kl_of_a_float64_teacher_is_float64():
    student, teacher = make(10, 25)
    assert kd_kl(student, teacher.double()).dtype == torch.float64


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_kd_kl_of_no_rows(backend, reduction):
    student, teacher = make(0, 5)
    loss, gradient = loss_and_gradient(kd_kl, student, teacher, reduction=reduction, backend=backend)
    assert loss.shape == ((0,) if reduction == "none" else ())
    assert loss.sum() == 0
    assert gradient.shape == (0, 5)


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_kd_kl_of_any_strides(backend, reduction):
    student, teacher = make(12, 9)
    options = {"reduction": reduction, "backend": backend}
    layouts = [
        lambda x: x.T.contiguous().T,
        lambda x: x[:1].expand(12, 9),
        lambda x: torch.stack([x, -x], dim=2).flatten(1)[:, ::2],
    ]
    for layout in layouts:
        s, t = layout(student), layout(teacher)
        actual = loss_and_gradient(kd_kl, s, t, **options)
        expected = loss_and_gradient(kd_kl, s.contiguous(), t.contiguous(), **options)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_kd_kl_strided_and_expanded_upstream_gradients(backend):
    student, teacher = make(12, 9)
    many = torch.randn(12, 2, generator=torch.Generator().manual_seed(3))
    for upstream in (many[:, 0], many[0, :1].expand(12)):
        _, gradient = loss_and_gradient(kd_kl, student, teacher, upstream, reduction="none", backend=backend)
        _, exact = loss_and_gradient(reference.kd_kl, student.double(), teacher.double(), upstream, reduction="none")
        torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
@pytest.mark.parametrize("standardize", [False, True])
def test_kd_kl_gradcheck(standardize, reduction):
    student, teacher = make(5, 6, dtype=torch.float64)
    options = {"standardize": standardize, "reduction": reduction, "backend": "reference"}
    assert torch.autograd.gradcheck(lambda x: kd_kl(x, teacher, **options), student.requires_grad_())


def test_kd_kl_float16_gradients_do_not_underflow_under_a_loss_scale(backend):
    student, teacher = make(4096, 50, dtype=torch.float16, scale=0.5)
    scale = torch.tensor(2.0**14)
    _, gradient = loss_and_gradient(kd_kl, student, teacher, scale, backend=backend)
    _, exact = loss_and_gradient(reference.kd_kl, student.double(), teacher.double(), scale)
    torch.testing.assert_close(gradient.double(), exact, rtol=2e-3, atol=1e-6)


# --- rkd_distance and rkd_angle ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RELATIONAL)
@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "student_width", "teacher_width"), RKD_SIZES)
def test_relational_is_as_accurate_as_the_definition(backend, rows, student_width, teacher_width, dtype, name):
    student, teacher = make(rows, student_width, teacher_width, dtype, scale=1.0)
    loss, gradient = loss_and_gradient(RELATIONAL[name], student, teacher, backend=backend)
    exact = loss_and_gradient(getattr(reference, name), student.double(), teacher.double())
    single = loss_and_gradient(getattr(reference, name), student, teacher)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert_as_accurate(loss, single[0], exact[0], slack=2e-6 * float(exact[0]) + 1e-9)
    assert_as_accurate(gradient, single[1], exact[1], slack=1e-5 * float(exact[1].abs().max()) + 1e-9)
    evaluated = RELATIONAL[name](student, teacher, backend=backend)
    torch.testing.assert_close(evaluated, loss)


def test_rkd_angle_is_the_mean_over_all_triples(backend):
    student, teacher = make(7, 3, 5, scale=1.0)
    student[3] = student[5]
    teacher[0] = teacher[1]
    exact = loss_and_gradient(angle_loss_by_triples, student.double(), teacher.double())
    loss, gradient = loss_and_gradient(rkd_angle, student, teacher, backend=backend)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-5, atol=1e-7)
    # The loop's own derivative at a zero length is that of torch.norm, 0, as wanted.
    torch.testing.assert_close(gradient.double(), exact[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_of_repeated_rows(backend, name):
    """A zero difference is no direction and a zero distance no part of the mean; neither has a gradient."""
    student, teacher = make(19, 6, 4, scale=1.0)
    student[4:9] = student[4]
    teacher[7:12] = teacher[7]
    actual = loss_and_gradient(RELATIONAL[name], student, teacher, backend=backend)
    exact = loss_and_gradient(getattr(reference, name), student.double(), teacher.double())
    torch.testing.assert_close(actual[0].double(), exact[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(actual[1].double(), exact[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", RELATIONAL)
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_relational_without_a_distance(backend, rows, name):
    student, teacher = torch.ones(rows, 3), torch.ones(rows, 2)
    loss, gradient = loss_and_gradient(RELATIONAL[name], student, teacher, backend=backend)
    assert loss == 0
    assert gradient.shape == (rows, 3)
    assert gradient.eq(0).all()


@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_of_close_rows_far_from_the_origin(backend, name):
    """Distances come from differences: from a Gram matrix they would be rounding errors here."""
    student, teacher = make(23, 16, 16, scale=1.0)
    student = (student * 1024).round() / 1024 + 1000  # exact in float32
    actual = loss_and_gradient(RELATIONAL[name], student, teacher, backend=backend)
    exact = loss_and_gradient(getattr(reference, name), student.double(), teacher.double())
    torch.testing.assert_close(actual[0].double(), exact[0], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(actual[1].double(), exact[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_divergence_stays_visible(backend, name):
    student, teacher = make(9, 17, 5)
    student[3, 16] = torch.nan
    loss, gradient = loss_and_gradient(RELATIONAL[name], student, teacher, backend=backend)
    assert loss.isnan()
    assert gradient[3].isnan().all()


@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_under_autocast_stays_in_float32(backend, name):
    student, teacher = make(20, 33, 12)
    expected = loss_and_gradient(RELATIONAL[name], student, teacher, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss_and_gradient(RELATIONAL[name], student, teacher, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_of_any_strides(backend, name):
    student, teacher = make(15, 8, 6)
    s, t = student.T.contiguous().T, torch.stack([teacher, teacher], 2)[..., 0]
    actual = loss_and_gradient(RELATIONAL[name], s, t, backend=backend)
    expected = loss_and_gradient(RELATIONAL[name], student, teacher, backend=backend)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_scales_with_the_upstream_gradient(backend, name):
    student, teacher = make(15, 8, 6, dtype=torch.bfloat16)
    _, gradient = loss_and_gradient(RELATIONAL[name], student, teacher, torch.tensor(-3.0), backend=backend)
    _, exact = loss_and_gradient(
        getattr(reference, name), student.double(), teacher.double(), torch.tensor(-3.0).double()
    )
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_gradcheck(name):
    student, teacher = make(9, 4, 5, dtype=torch.float64, scale=1.0)
    student[2] = student[6]
    function = RELATIONAL[name]
    free = torch.tensor([i not in (2, 6) for i in range(9)])

    def of_the_free_rows(rows):  # equal rows are a kink: only the others move
        moved = student.clone()
        moved[free] = rows
        return function(moved, teacher, backend="reference")

    assert torch.autograd.gradcheck(of_the_free_rows, student[free].clone().requires_grad_())


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [kd_kl, rkd_distance, rkd_angle], ids=lambda f: f.__name__)
def test_same_bits_every_time(backend, function):
    student, teacher = make(67, 45)
    first = loss_and_gradient(function, student, teacher, backend=backend)
    for _ in range(10):
        again = loss_and_gradient(function, student, teacher, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("function", [kd_kl, rkd_distance, rkd_angle], ids=lambda f: f.__name__)
def test_gradient_to_the_student_only(backend, function):
    student, teacher = (x.requires_grad_() for x in make(8, 5))
    function(student, teacher, backend=backend).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert not function(student.detach(), teacher, backend=backend).requires_grad
    with torch.no_grad():
        assert not function(student, teacher, backend=backend).requires_grad


@pytest.mark.parametrize("function", [kd_kl, rkd_distance, rkd_angle], ids=lambda f: f.__name__)
def test_backward_through_a_kept_graph(backend, function):
    student, teacher = make(8, 5)
    student.requires_grad_()
    loss = function(student, teacher, backend=backend)
    once = torch.autograd.grad(loss, student, retain_graph=True)[0].clone()
    for _ in range(3):
        loss.backward(retain_graph=True)
    torch.testing.assert_close(student.grad, 3 * once)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student_logits": None}, TypeError, "student_logits is a NoneType"),
        ({"student_logits": torch.zeros(4)}, ValueError, r"student_logits has shape \(4,\)"),
        ({"teacher_logits": torch.zeros(4, 6)}, ValueError, r"teacher_logits has shape \(4, 6\)"),
        ({"teacher_logits": torch.zeros(4, 5, dtype=torch.int32)}, TypeError, "teacher_logits has dtype torch.int32"),
        ({"teacher_logits": torch.zeros(4, 5, device="meta")}, ValueError, "teacher_logits is on meta"),
        ({"student_logits": torch.zeros(4, 0), "teacher_logits": torch.zeros(4, 0)}, ValueError, "at least one class"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"temperature": float("nan")}, ValueError, "temperature is nan"),
        ({"temperature": "4"}, TypeError, "temperature is '4'"),
        ({"reduction": "mean"}, ValueError, "reduction is 'mean'"),
        ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
    ],
)
def test_kd_kl_wrong_arguments(change, error, message):
    arguments = {"student_logits": torch.zeros(4, 5), "teacher_logits": torch.zeros(4, 5), **change}
    with pytest.raises(error, match=message):
        kd_kl(**arguments)


@pytest.mark.parametrize("name", RELATIONAL)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student": torch.zeros(4, 5, dtype=torch.int64)}, TypeError, "student has dtype torch.int64"),
        ({"student": torch.zeros(4, 5, 6)}, ValueError, r"student has shape \(4, 5, 6\)"),
        ({"teacher": torch.zeros(3, 5)}, ValueError, r"teacher has shape \(3, 5\)"),
        ({"teacher": torch.zeros(4, 5, device="meta")}, ValueError, "teacher is on meta"),
        ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
    ],
)
def test_relational_wrong_arguments(change, error, message, name):
    arguments = {"student": torch.zeros(4, 5), "teacher": torch.zeros(4, 7), **change}
    with pytest.raises(error, match=message):
        RELATIONAL[name](**arguments)
