"""Triton's relational losses against the definitions in float64, over sizes, repeated, close and broken rows."""

import pytest
import torch

from icckd import reference
from icckd.kernels import relational as kernels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NaN is looked at on purpose
# The interpreter's table: tiles of 16 rows, and of 8 columns in the gradient.
SIZES = [(1, 3, 2), (2, 1, 1), (7, 5, 3), (16, 8, 9), (17, 13, 2), (35, 3, 19)]
DTYPES = [torch.float32, torch.bfloat16]
NAMES = ["rkd_distance", "rkd_angle"]


def make(generator, rows, student_width, teacher_width, dtype=torch.float32):
    student = torch.randn(rows, student_width, generator=generator).to(dtype)
    return student, torch.randn(rows, teacher_width, generator=generator)


def of_definition(name, student, teacher):
    """Loss and gradient, in the precision of the rows."""
    x = student.detach().clone().requires_grad_()
    loss = getattr(reference, name)(x, teacher)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), gradient


def exact(name, student, teacher):
    return of_definition(name, student.double(), teacher.double())


def loss_and_gradient(name, student, teacher):
    """What the operator returns; its loss does not depend on whether a gradient is wanted."""
    loss, gradient = getattr(kernels, name)(student, teacher, True)
    alone, nothing = getattr(kernels, name)(student, teacher, False)
    assert torch.equal(loss.nan_to_num(7), alone.nan_to_num(7))
    assert nothing.shape == (0,)
    assert loss.dtype == gradient.dtype == nothing.dtype == torch.float32
    return loss, gradient


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "student_width", "teacher_width"), SIZES)
def test_matches_the_definition(guard, generator, rows, student_width, teacher_width, dtype, name):
    """To a rounding of float32: closer than the definition itself comes in that precision."""
    student, teacher = make(generator, rows, student_width, teacher_width, dtype)
    loss, gradient = loss_and_gradient(name, guard(student), guard(teacher))
    exact_loss, exact_gradient = exact(name, student, teacher)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=2e-7, atol=1e-14)
    scale = float(exact_gradient.abs().max())
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=2e-7, atol=1e-7 * scale + 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_repeated_rows(guard, generator, name):
    """A zero difference is no direction and a zero distance no part of the mean; neither has a gradient."""
    student, teacher = make(generator, 19, 6, 4)
    student[4:9] = student[4]
    teacher[7:18] = teacher[7]
    loss, gradient = loss_and_gradient(name, guard(student), guard(teacher))
    exact_loss, exact_gradient = exact(name, student, teacher)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_close_rows(generator, name):
    """Short sides of long triangles: float32 would lose their angles to cancellation."""
    student, teacher = make(generator, 18, 5, 7)
    student[3] = student[12] + 2.0**-16
    student[5] = student[12] * (1 + 2.0**-12)
    loss, gradient = loss_and_gradient(name, student, teacher)
    single_loss, single_gradient = of_definition(name, student, teacher)
    exact_loss, exact_gradient = exact(name, student, teacher)
    for actual, single, expected in (
        (loss, single_loss, exact_loss),
        (gradient, single_gradient, exact_gradient),
    ):
        error, budget = (actual - expected).abs().max(), 2 * (single - expected).abs().max()
        assert error <= budget + 1e-7 * expected.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_rows_far_from_the_origin(generator, name):
    student, teacher = make(generator, 18, 9, 5)
    student = (student * 1024).round() / 1024 + 1000  # exact in float32
    loss, gradient = loss_and_gradient(name, student, teacher)
    exact_loss, exact_gradient = exact(name, student, teacher)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=2e-7, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_without_a_distance(guard, rows, name):
    loss, gradient = loss_and_gradient(name, guard(torch.ones(rows, 3)), guard(torch.ones(rows, 2)))
    assert loss == 0
    assert gradient.shape == (rows, 3)
    assert gradient.eq(0).all()


@pytest.mark.parametrize("name", NAMES)
def test_without_columns(guard, generator, name):
    student, teacher = make(generator, 5, 0, 2)
    loss, gradient = loss_and_gradient(name, guard(student), guard(teacher))
    torch.testing.assert_close(loss.double(), getattr(reference, name)(student.double(), teacher.double()))
    assert gradient.shape == (5, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_divergence_stays_visible(guard, generator, name, who):
    student, teacher = make(generator, 18, 9, 9)
    (student if who == "student" else teacher)[3, 8] = torch.nan
    loss, gradient = loss_and_gradient(name, guard(student), guard(teacher))
    assert loss.isnan()
    assert gradient[3].isnan().all()


@pytest.mark.parametrize("name", NAMES)
def test_any_strides(generator, name):
    student, teacher = make(generator, 17, 8, 6)
    expected = loss_and_gradient(name, student, teacher)
    for layout in (
        lambda x: x.T.contiguous().T,
        lambda x: torch.stack([x, x], 2)[..., 0],
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    ):
        actual = loss_and_gradient(name, layout(student), layout(teacher))
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_every_time(generator, name):
    student, teacher = make(generator, 20, 5, 6)
    first = loss_and_gradient(name, student, teacher)
    again = loss_and_gradient(name, student, teacher)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
