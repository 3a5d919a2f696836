"""attention_transfer against the definition in float64."""

import pytest
import torch

from icckd import BackendUnavailable, reference
from icckd.functional import attention_transfer
from tests.problems import SMALL, assert_as_accurate, loss_and_gradient


def make(rows=5, student_channels=3, teacher_channels=8, size=(4, 6), dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(rows)
    student = torch.randn(rows, student_channels, *size, generator=generator)
    teacher = torch.randn(rows, teacher_channels, *size, generator=generator)
    return (scale * student).to(dtype), (scale * teacher).to(dtype)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, (1, 1)), (5, 3, 8, (4, 6)), (16, 32, 7, (8, 8))], ids=str)
def test_is_as_accurate_as_the_definition(shape, dtype):
    student, teacher = make(*shape, dtype=dtype)
    loss, gradient = loss_and_gradient(attention_transfer, student, teacher)
    exact = loss_and_gradient(reference.attention_transfer, student.double(), teacher.double())
    single = loss_and_gradient(reference.attention_transfer, student, teacher)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert_as_accurate(loss, single[0], exact[0], slack=2e-6 * float(exact[0]) + 1e-9)
    assert_as_accurate(gradient, single[1], exact[1], slack=1e-5 * float(exact[1].abs().max()) + 1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_float16_neither_overflows_nor_underflows(scale):
    student, teacher = make(dtype=torch.float16, scale=scale)
    loss, _ = loss_and_gradient(attention_transfer, student, teacher)
    exact, _ = loss_and_gradient(reference.attention_transfer, student.double(), teacher.double())
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_a_map_does_not_matter(scale):
    student, teacher = make()
    expected, _ = loss_and_gradient(attention_transfer, student, teacher)
    loss, gradient = loss_and_gradient(attention_transfer, scale * student, teacher / scale)
    torch.testing.assert_close(loss, expected)
    assert gradient.isfinite().all()


def test_a_student_equal_to_its_teacher_and_maps_of_zeros():
    student, _ = make()
    loss, gradient = loss_and_gradient(attention_transfer, student, student)
    assert loss == 0
    assert gradient.eq(0).all()
    zeros, teacher = torch.zeros(5, 3, 4, 6), student
    loss, gradient = loss_and_gradient(attention_transfer, zeros, teacher)
    torch.testing.assert_close(loss, torch.tensor(1 / 24))
    assert gradient.eq(0).all()
    loss, gradient = loss_and_gradient(attention_transfer, student[:0], teacher[:0])
    assert loss == 0
    assert gradient.shape == (0, 3, 4, 6)


def test_channels_last_and_autocast():
    student, teacher = make()
    expected = loss_and_gradient(attention_transfer, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss_and_gradient(attention_transfer, student, teacher)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    actual = loss_and_gradient(attention_transfer, *(x.to(memory_format=torch.channels_last) for x in make()))
    torch.testing.assert_close(actual, expected)


def test_gradcheck_and_gradient_to_the_student_only():
    student, teacher = make(2, 2, 3, (2, 2), torch.float64)
    teacher.requires_grad_()
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: attention_transfer(x, teacher), student, check_forward_ad=True)
    attention_transfer(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"student_map": torch.zeros(4, 5)},
            ValueError,
            r"student_map has shape \(4, 5\); it should be \(N, C, H, W\)",
        ),
        ({"student_map": torch.zeros(4, 0, 2, 2)}, ValueError, "with at least one number in a map"),
        ({"teacher_map": torch.zeros(3, 5, 2, 2)}, ValueError, r"teacher_map has shape .* it should be \(4, C, H, W\)"),
        (
            {"teacher_map": torch.zeros(4, 5, 4, 4)},
            ValueError,
            "teacher_map has resolution 4 × 4; it should be 2 × 2, as student_map has",
        ),
        ({"teacher_map": torch.zeros(4, 5, 2, 2, dtype=torch.int8)}, TypeError, "teacher_map has dtype torch.int8"),
        ({"teacher_map": torch.zeros(4, 5, 2, 2, device="meta")}, ValueError, "teacher_map is on meta"),
        ({"backend": "cpu"}, BackendUnavailable, "no kernel for attention_transfer"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {"student_map": torch.zeros(4, 3, 2, 2), "teacher_map": torch.zeros(4, 7, 2, 2)}
    with pytest.raises(error, match=message):
        attention_transfer(**arguments | change)
