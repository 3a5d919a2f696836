"""Triton's kernels of dkd, nkd and ttm against PyTorch in float64: rows in registers, sweeps, any values."""

import pytest
import torch

from icckd.backends import eager
from icckd.kernels import distillation, rest_divergence

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # −∞ and NaN are looked at on purpose
# The interpreter's table: rows of up to 64 lie in registers, several to a program up to 32; sweeps take 32 at a time.
SIZES = [(9, 1), (7, 2), (5, 17), (3, 64), (2, 65), (2, 131)]
TEMPERATURES = [(2.5, 2.5), (2.5, 1.0)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(generator, rows, classes, dtype=torch.float32, scale=3.0):
    student, teacher = scale * torch.randn(2, rows, classes, generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    upstream = torch.randn(2, rows, generator=generator)
    return student.to(dtype), teacher.to(dtype), labels, upstream


def compute(module, student, teacher, labels, upstream, temperatures):
    """Divergence, entropy, odds of both, and the gradient."""
    rows = module.rest_divergence_rows(student, teacher, labels, *temperatures)
    gradient = module.rest_divergence_rows_backward(*upstream, student, teacher, labels, *temperatures)
    return *rows, gradient


def exact(student, teacher, labels, upstream, temperatures):
    return compute(eager, student.double(), teacher.double(), labels, upstream.double(), temperatures)


def assert_close(actual, expected, rtol=1e-5, atol=2e-6):
    for x, y in zip(actual, expected, strict=True):
        rounding = 2 * torch.finfo(x.dtype).eps if x.dtype != torch.float32 else rtol
        torch.testing.assert_close(x.double(), y, rtol=rounding, atol=atol, equal_nan=True)


@pytest.mark.parametrize(("dtype", "temperatures"), zip(DTYPES, [*TEMPERATURES, TEMPERATURES[1]], strict=True), ids=str)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_is_what_pytorch_computes(guard, generator, rows, classes, dtype, temperatures):
    student, teacher, labels, upstream = make(generator, rows, classes, dtype)
    guarded = guard(student), guard(teacher), guard(labels), upstream
    actual = compute(rest_divergence, *guarded, temperatures)
    assert actual[-1].dtype == dtype
    assert_close(actual, exact(student, teacher, labels, upstream, temperatures))


@pytest.mark.parametrize("temperatures", TEMPERATURES)
@pytest.mark.parametrize("classes", [20, 100])
def test_classes_that_are_ruled_out(generator, classes, temperatures):
    """By both, by the teacher, by the student alone; all but the label's by either."""
    student, teacher, labels, upstream = make(generator, 6, classes)
    hidden = torch.zeros(classes, dtype=torch.bool)
    hidden[::3] = True
    hidden[32:64] = True
    others = torch.arange(classes) != labels[:, None]
    student[0, hidden] = teacher[0, hidden] = -torch.inf
    teacher[1, hidden] = -torch.inf
    student[2, hidden] = -torch.inf
    teacher[3, others[3]] = student[3, others[3]] = -torch.inf
    teacher[4, others[4]] = -torch.inf
    student[5, others[5]] = -torch.inf
    expected = exact(student, teacher, labels, upstream, temperatures)
    assert_close(compute(rest_divergence, student, teacher, labels, upstream, temperatures), expected)


@pytest.mark.parametrize("temperatures", TEMPERATURES)
@pytest.mark.parametrize("classes", [21, 75])
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits(generator, classes, scale, temperatures):
    problem = make(generator, 4, classes, scale=scale)
    assert_close(compute(rest_divergence, *problem, temperatures), exact(*problem, temperatures))


@pytest.mark.parametrize("temperatures", TEMPERATURES)
@pytest.mark.parametrize("classes", [33, 70])
def test_labels_that_name_no_class_and_nan_stay_visible(guard, generator, classes, temperatures):
    student, teacher, labels, upstream = make(generator, 4, classes)
    labels[:3] = torch.tensor([classes, -1, 0])
    student[2, 32] = torch.nan
    guarded = guard(student), guard(teacher), guard(labels), upstream
    divergence, entropy, odds, teacher_odds, gradient = compute(rest_divergence, *guarded, temperatures)
    assert divergence.isnan().tolist() == odds.isnan().tolist() == [True, True, True, False]
    assert entropy.isnan().tolist() == teacher_odds.isnan().tolist() == [True, True, False, False]
    others = torch.arange(classes) != labels[:, None]
    assert gradient[others].view(-1).isnan().sum() == others[:3].sum()


@pytest.mark.parametrize("classes", [24, 72])
def test_any_strides_and_two_dtypes(generator, classes):
    student, teacher, labels, upstream = make(generator, 3, classes)
    expected = compute(rest_divergence, student, teacher, labels, upstream, (2.0, 1.0))
    s, t = student.T.contiguous().T, torch.stack([teacher, -teacher], dim=2).flatten(1)[:, ::2]
    many = torch.stack([labels, labels], 1)[:, 0]
    actual = compute(rest_divergence, s, t, many, torch.stack([upstream, upstream], 2)[..., 0], (2.0, 1.0))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    half = teacher.half()
    actual = compute(rest_divergence, student, half, labels, upstream, (2.0, 1.0))
    assert_close(actual, exact(student, half, labels, upstream, (2.0, 1.0)))


def test_no_rows(generator):
    actual = compute(rest_divergence, *make(generator, 0, 5), (2.0, 1.0))
    assert [tuple(x.shape) for x in actual] == [(0,)] * 4 + [(0, 5)]


@pytest.mark.parametrize(("gamma", "weighted"), [(0.7, False), (0.1, True)])
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_transformed_teacher_is_what_pytorch_computes(guard, generator, rows, classes, gamma, weighted):
    student, teacher, _, (upstream, _) = make(generator, rows, classes)
    if classes > 2:
        teacher[0, 1 : classes // 2] = -torch.inf
    settings = gamma, weighted
    losses = distillation.transformed_teacher_rows(guard(student), guard(teacher), *settings)
    gradient = distillation.transformed_teacher_rows_backward(
        guard(upstream), guard(student), guard(teacher), *settings
    )
    exact_rows = eager.transformed_teacher_rows(student.double(), teacher.double(), *settings)
    inputs = upstream.double(), student.double(), teacher.double()
    assert_close((losses, gradient), (exact_rows, eager.transformed_teacher_rows_backward(*inputs, *settings)))
