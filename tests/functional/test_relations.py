"""similarity_preserving and pkt against the definitions in float64."""

import pytest
import torch

from icckd import BackendUnavailable, reference
from icckd.functional import pkt, similarity_preserving
from tests.problems import SMALL, assert_as_accurate, loss_and_gradient
from tests.problems import student_and_teacher as make

SIZES = [(1, 3, 2), (2, 1, 1), (17, 31, 13), (37, 64, 10)]
each = pytest.mark.parametrize("function", [similarity_preserving, pkt], ids=lambda f: f.__name__)


def definition(function):
    return getattr(reference, function.__name__)


@each
@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "student_width", "teacher_width"), SIZES)
def test_is_as_accurate_as_the_definition(function, rows, student_width, teacher_width, dtype):
    student, teacher = make(rows, student_width, teacher_width, dtype, scale=1.0)
    loss, gradient = loss_and_gradient(function, student, teacher)
    exact = loss_and_gradient(definition(function), student.double(), teacher.double())
    single = loss_and_gradient(definition(function), student, teacher)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert_as_accurate(loss, single[0], exact[0], slack=2e-6 * float(exact[0]) + 1e-9)
    assert_as_accurate(gradient, single[1], exact[1], slack=1e-5 * float(exact[1].abs().max()) + 1e-6)


@each
def test_rows_of_any_shape_are_flattened(function):
    student, teacher = make(8, 24, 30)
    maps, other = student.view(8, 2, 3, 4), teacher.view(8, 5, 6)
    loss, gradient = loss_and_gradient(function, maps.transpose(1, 3).contiguous().transpose(1, 3), other)
    expected, flat = loss_and_gradient(function, student, teacher)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient.flatten(1), flat)


@each
@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_a_student_equal_to_its_teacher_has_no_loss(function, dtype):
    student, _ = make(9, 20, dtype=dtype)
    loss, gradient = loss_and_gradient(function, student, student)
    assert abs(loss) < 1e-8
    assert gradient.abs().max() < 1e-6


@each
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_zero_rows(function, rows):
    student, teacher = torch.zeros(rows, 3), torch.ones(rows, 2)
    loss, gradient = loss_and_gradient(function, student, teacher)
    exact, _ = loss_and_gradient(definition(function), student.double(), teacher.double())
    torch.testing.assert_close(loss.double(), exact)
    assert gradient.eq(0).all()
    student, teacher = make(6, 5, 4)
    student[2] = 0
    teacher[3] = 0
    loss, gradient = loss_and_gradient(function, student, teacher)
    exact, exact_gradient = loss_and_gradient(definition(function), student.double(), teacher.double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-7)


def test_pkt_of_opposite_rows_is_finite():
    student = torch.randn(1, 37, generator=torch.Generator().manual_seed(0))
    student = torch.cat([student, -student, 3 * student])
    loss, gradient = loss_and_gradient(pkt, student, student.roll(1, 0))
    exact, _ = loss_and_gradient(reference.pkt, student.double(), student.roll(1, 0).double())
    torch.testing.assert_close(loss.double(), exact, rtol=0.1, atol=0)  # ε decides, and a rounding is no less
    assert gradient.isfinite().all()


@each
@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("largest", [False, True])
def test_large_and_small_numbers(function, dtype, largest):
    """Squares of float16's largest, sums of fourth powers of larger ones."""
    scale = 10000.0 if dtype == torch.float16 else 1e12
    student, teacher = make(12, 40, 30, dtype, scale=scale if largest else 1e-3)
    loss, gradient = loss_and_gradient(function, student, teacher)
    exact = loss_and_gradient(definition(function), student.double(), teacher.double())
    torch.testing.assert_close(loss.double(), exact[0], rtol=2e-5, atol=0)
    tolerance = 2 * torch.finfo(dtype).eps
    floor = 6e-8 if dtype == torch.float16 else 0
    torch.testing.assert_close(
        gradient.double(), exact[1], rtol=tolerance, atol=1e-4 * float(exact[1].abs().max()) + floor
    )


@each
def test_under_autocast_stays_in_float32(function):
    student, teacher = make(20, 33, 12)
    expected, gradient = loss_and_gradient(function, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = function(student.requires_grad_(), teacher)
    assert torch.equal(loss, expected)
    assert torch.equal(torch.autograd.grad(loss, student)[0], gradient)


@each
def test_gradcheck_and_second_derivatives(function):
    student, teacher = make(4, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: function(x, teacher), student.requires_grad_(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: function(x, teacher), student)


@each
def test_gradient_to_the_student_only_and_divergence_stays_visible(function):
    student, teacher = (x.requires_grad_() for x in make(8, 5))
    function(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert function(student, teacher.double()).dtype == torch.float64
    with torch.no_grad():
        student[3, 2] = torch.nan
    assert function(student, teacher).isnan()


@each
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student": [1.0]}, TypeError, "student is a list"),
        ({"student": torch.zeros(4, 5, dtype=torch.int64)}, TypeError, "student has dtype torch.int64"),
        ({"student": torch.zeros(4)}, ValueError, r"student has shape \(4,\); it should be \(N, …\)"),
        ({"student": torch.zeros(4, 0)}, ValueError, "with at least one number in a row"),
        ({"teacher": torch.zeros(3, 5)}, ValueError, r"teacher has shape \(3, 5\); it should be \(4, …\)"),
        ({"teacher": torch.zeros(4, 5, device="meta")}, ValueError, "teacher is on meta"),
        ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
        ({"backend": "cpu"}, BackendUnavailable, "no kernel for .*; 'reference' can compute it"),
    ],
)
def test_wrong_arguments(function, change, error, message):
    with pytest.raises(error, match=message):
        function(**{"student": torch.zeros(4, 5), "teacher": torch.zeros(4, 7), **change})
