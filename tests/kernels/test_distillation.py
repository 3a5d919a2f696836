"""Triton's softened divergence against the definition in float64: rows in registers, sweeps, any values."""

import pytest
import torch

from icckd import reference
from icckd.kernels import distillation as kernels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # −∞ and NaN are looked at on purpose
# The interpreter's table: rows of up to 64 lie in registers, several to a program up to 32; sweeps take 32 at a time.
SIZES = [(7, 2), (5, 3), (13, 17), (3, 64), (2, 65), (1, 96), (2, 131)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TEMPERATURE, SCALE = 2.5, 0.25


def make(generator, rows, classes, dtype=torch.float32, scale=3.0):
    student, teacher = scale * torch.randn(2, rows, classes, generator=generator)
    return student.to(dtype), teacher.to(dtype)


def of_definition(student, teacher, upstream, standardize=False, temperature=TEMPERATURE):
    """Rows and the gradient of Σ upstream · rows, in the precision of the logits."""
    x = student.detach().clone().requires_grad_()
    rows = reference.kd_kl(x, teacher, temperature=temperature, standardize=standardize, reduction="none")
    (gradient,) = torch.autograd.grad((upstream.to(rows) * rows).sum(), x)
    return rows.detach(), gradient


def exact(student, teacher, *others, **options):
    return of_definition(student.double(), teacher.double(), *others, **options)


def rows_and_gradient(student, teacher, upstream, standardize=False, temperature=TEMPERATURE):
    """Rows and their gradient; the operator of the sum agrees with both."""
    rows = kernels.kd_kl_rows(student, teacher, temperature, standardize)
    gradient = kernels.kd_kl_rows_backward(upstream, student, teacher, temperature, standardize)
    loss, scaled = kernels.kd_kl_sum(student, teacher, temperature, standardize, SCALE)
    everywhere = torch.full_like(upstream, SCALE)
    expected = kernels.kd_kl_rows_backward(everywhere, student, teacher, temperature, standardize)
    assert (rows.dtype, loss.dtype, scaled.dtype) == (torch.float32, torch.float32, student.dtype)
    torch.testing.assert_close(loss, SCALE * rows.sum(), rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(scaled, expected, rtol=1e-5, atol=1e-7, equal_nan=True)
    return rows, gradient


def assert_as_accurate(actual, single, expected):
    """The error against float64 is at most twice that of PyTorch in the same precision, plus a few roundings."""
    error = (actual.double() - expected).abs().max()
    slack = 2e-6 * float(expected.abs().max()) + 1e-6
    assert error <= 2 * (single.double() - expected).abs().max() + slack


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_is_as_accurate_as_the_definition(guard, generator, rows, classes, dtype, standardize):
    student, teacher = make(generator, rows, classes, dtype)
    upstream = torch.randn(rows, generator=generator)
    actual = rows_and_gradient(guard(student), guard(teacher), guard(upstream), standardize)
    single = of_definition(student, teacher, upstream, standardize=standardize)
    expected = exact(student, teacher, upstream, standardize=standardize)
    for a, s, e in zip(actual, single, expected, strict=True):
        assert_as_accurate(a, s, e)


@pytest.mark.parametrize("standardize", [False, True])
def test_a_single_class_diverges_from_nothing(guard, generator, standardize):
    student, teacher = make(generator, 9, 1)
    rows, gradient = rows_and_gradient(guard(student), guard(teacher), torch.ones(9), standardize)
    assert rows.eq(0).all()
    assert gradient.eq(0).all()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("classes", [50, 70])
def test_equal_logits(generator, classes, standardize):
    student, _ = make(generator, 5, classes)
    rows, gradient = rows_and_gradient(student, student, torch.ones(5), standardize)
    torch.testing.assert_close(rows, torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, torch.zeros_like(student), rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [40, 70])
def test_constant_rows_under_standardisation(generator, classes):
    """A row without spread standardises to zeros: the definition's value, and no NaN."""
    student, teacher = make(generator, 5, classes)
    teacher[2] = 5.0
    rows, gradient = rows_and_gradient(student, teacher, torch.ones(5), True)
    exact_rows, exact_gradient = exact(student, teacher, torch.ones(5), standardize=True)
    torch.testing.assert_close(rows.double(), exact_rows, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-6)
    student[2] = -1.0
    rows, gradient = rows_and_gradient(student, teacher, torch.ones(5), True)
    assert rows.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("classes", [21, 75])
def test_large_logits_keep_their_differences(generator, classes, standardize):
    student, teacher = ((x * 1024).round() / 1024 + 8192 for x in make(generator, 4, classes))
    upstream = torch.rand(4, generator=generator)
    actual = rows_and_gradient(student, teacher, upstream, standardize)
    single = of_definition(student, teacher, upstream, standardize=standardize)
    expected = exact(student, teacher, upstream, standardize=standardize)
    for a, s, e in zip(actual, single, expected, strict=True):
        assert_as_accurate(a, s, e)


@pytest.mark.parametrize("classes", [21, 75])
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits(generator, classes, scale):
    student, teacher = make(generator, 5, classes, scale=scale)
    upstream = torch.rand(5, generator=generator)
    rows, gradient = rows_and_gradient(student, teacher, upstream)
    exact_rows, exact_gradient = exact(student, teacher, upstream)
    torch.testing.assert_close(rows.double(), exact_rows, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", [20, 100])
def test_masked_classes(generator, classes):
    """A class that both rule out adds nothing; one that only the student rules out makes the row infinite, not NaN."""
    student, teacher = make(generator, 4, classes)
    hidden = torch.zeros(classes, dtype=torch.bool)
    hidden[::3] = True
    hidden[32:64] = True
    upstream = torch.rand(4, generator=generator)
    masked = [x.masked_fill(hidden, -torch.inf) for x in (student, teacher)]
    rows, gradient = rows_and_gradient(*masked, upstream)
    exact_rows, exact_gradient = exact(student[:, ~hidden], teacher[:, ~hidden], upstream)
    torch.testing.assert_close(rows.double(), exact_rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[:, ~hidden].double(), exact_gradient, rtol=1e-5, atol=1e-6)
    assert gradient[:, hidden].eq(0).all()
    rows, gradient = rows_and_gradient(masked[0], teacher, upstream)
    assert rows.eq(torch.inf).all()
    assert gradient.isfinite().all()
    rows, _ = rows_and_gradient(student, masked[1], upstream)
    assert rows.isfinite().all()


@pytest.mark.parametrize("classes", [20, 100])
def test_a_share_that_underflows_adds_nothing(generator, classes):
    """Also where the student rules its class out, in whichever lane and order of the sweep it comes."""
    student, teacher = make(generator, 3, classes)
    student[0, 0] = student[1, 5] = student[2, classes - 1] = -torch.inf
    teacher[0, 0] = teacher[1, 5] = teacher[2, classes - 1] = -1e4
    rows, _ = rows_and_gradient(student, teacher, torch.ones(3))
    kept = student.isfinite()
    exact_rows = [
        exact(s[None, k], t[None, k], torch.ones(1))[0] for s, t, k in zip(student, teacher, kept, strict=True)
    ]
    torch.testing.assert_close(rows.double(), torch.cat(exact_rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("classes", [33, 70])
def test_divergence_stays_visible(guard, generator, classes, standardize, who):
    student, teacher = make(generator, 3, classes)
    (student if who == "student" else teacher)[1, 32] = torch.nan
    rows, gradient = rows_and_gradient(guard(student), guard(teacher), torch.ones(3), standardize)
    assert rows.isnan().tolist() == [False, True, False]
    assert gradient.isnan().all(1).tolist() == [False, True, False]
    assert gradient[::2].isfinite().all()


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)], ids=str)
@pytest.mark.parametrize("classes", [24, 72])
def test_two_dtypes(guard, generator, classes, dtypes):
    student, teacher = (x.to(d) for x, d in zip(make(generator, 4, classes), dtypes, strict=True))
    rows, gradient = rows_and_gradient(guard(student), guard(teacher), torch.ones(4))
    exact_rows, exact_gradient = exact(student, teacher, torch.ones(4))
    torch.testing.assert_close(rows.double(), exact_rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, exact_gradient.to(student.dtype), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("classes", [24, 72])
def test_any_strides(generator, classes):
    student, teacher = make(generator, 2, classes)
    layouts = [
        lambda x: x.T.contiguous().T,
        lambda x: x[:1].expand(2, classes),
        lambda x: torch.stack([x, -x], dim=2).flatten(1)[:, ::2],
        lambda x: torch.cat([x[:, :1], x], dim=1)[:, 1:],
        lambda x: torch.cat([x, x], dim=1)[:, :classes],
    ]
    many = torch.randn(2, 2, generator=generator)
    for layout, upstream in zip(layouts, [many[:, 0], many[0, :1].expand(2)] * 3, strict=False):
        s, t = layout(student), layout(teacher)
        actual = rows_and_gradient(s, t, upstream, True)
        expected = rows_and_gradient(s.contiguous(), t.contiguous(), upstream.contiguous(), True)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_no_rows(guard):
    rows, gradient = rows_and_gradient(torch.empty(0, 5), torch.empty(0, 5), torch.empty(0))
    assert rows.shape == (0,)
    assert gradient.shape == (0, 5)


@pytest.mark.parametrize("classes", [37, 70])
def test_same_bits_every_time(generator, classes):
    student, teacher = make(generator, 5, classes)
    upstream = torch.rand(5, generator=generator)
    first = rows_and_gradient(student, teacher, upstream, True)
    again = rows_and_gradient(student, teacher, upstream, True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
