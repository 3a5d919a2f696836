"""The CUDA kernel of KD-KL, run by the emulator, against the definition in float64."""

import pytest
import torch

from icckd import reference
from tests.csrc import emulator
from tests.csrc.emulator.rows import LAYOUTS, SHARED_LIMITS, laid_out, memory_of, name_of, unwritten
from tests.problems import assert_as_accurate

SIZES = [
    (1, 1), (13, 1), (70, 2), (5, 3), (140, 10), (40, 31), (40, 32), (40, 33), (20, 100), (9, 127), (3, 1000),
    (5, 1024), (2, 1032), (2, 5003), (1, 20008),
]  # fmt: skip
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [(FLOAT32, FLOAT32), (BFLOAT16, BFLOAT16), (FLOAT16, FLOAT16), (BFLOAT16, FLOAT32), (FLOAT16, FLOAT32)]


@pytest.fixture(scope="module")
def kernels():
    if (reason := emulator.why_unavailable()) is not None:
        pytest.skip(f"no emulator: {reason}")
    return emulator.load("distillation", "sm_80")


@pytest.fixture
def run(kernels):
    """The kernel as a function of tensors: (weighted) rows and the student's gradient."""

    def run(
        student, teacher, weight=None, temperature=2.5, standardize=False, scale=1.0, gradient=True,
        shared_limit=SHARED_LIMITS[0], timing="late",
    ):  # fmt: skip
        count, classes = student.shape
        rows = unwritten(count)
        d_student = unwritten(count, classes, dtype=student.dtype) if gradient else None
        matrices = [(memory_of(x), x.storage_offset(), *x.stride()) for x in (student, teacher)]
        getattr(kernels, f"{name_of(student.dtype)}_{name_of(teacher.dtype)}")(
            *matrices[0], *matrices[1], count, classes, temperature, standardize, weight, scale, rows, d_student,
            shared_limit, timing,
        )  # fmt: skip
        return rows, d_student

    return run


def make(generator, rows, classes, dtypes=(FLOAT32, FLOAT32)):
    return tuple((3 * torch.randn(rows, classes, generator=generator)).to(dtype) for dtype in dtypes)


def defined(student, teacher, weight, temperature=2.5, standardize=False):
    """Weighted rows and the gradient of their sum, by the definition in the inputs' precision."""
    x = student.detach().requires_grad_()
    rows = weight * reference.kd_kl(x, teacher, temperature=temperature, standardize=standardize, reduction="none")
    (gradient,) = torch.autograd.grad(rows.sum(), x)
    return rows.detach(), gradient


def exactly(student, teacher, weight, **options):
    return defined(student.double(), teacher.double(), weight.double(), **options)


def assert_same(actual, expected):
    """The same bits; NaN where NaN is."""
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shared_limit", SHARED_LIMITS)
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_is_as_accurate_as_the_definition(run, generator, rows, classes, dtypes, standardize, shared_limit):
    student, teacher = make(generator, rows, classes, dtypes)
    weight = torch.randn(rows, generator=generator)
    losses, gradient = run(student, teacher, weight, standardize=standardize, shared_limit=shared_limit)
    if classes == 1:  # without a standard deviation
        return assert_same((losses, gradient), (torch.zeros(rows), torch.zeros_like(student)))
    exact_losses, exact_gradient = exactly(student, teacher, weight, standardize=standardize)
    single_losses, single_gradient = defined(student, teacher, weight, standardize=standardize)
    assert_as_accurate(losses, single_losses, exact_losses, 2e-6 * float(exact_losses.abs().max()) + 1e-6)
    rounding = 2e-6 * float(exact_gradient.abs().max()) + 1e-6
    if standardize:  # the gradient is what is left of numbers as large as T / σ
        rounding += 2e-7 * float((2.5 * weight.abs() / student.double().std(1)).max())
    assert_as_accurate(gradient, single_gradient, exact_gradient, rounding)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("rows", "classes"), [(20, 24), (9, 1000), (9, 1003), (2, 5008)])
def test_without_a_gradient_or_weights(run, generator, rows, classes, standardize):
    student, teacher = make(generator, rows, classes)
    expected = run(student, teacher, torch.full((rows,), 0.25), standardize=standardize)
    assert_same(run(student, teacher, scale=0.25, standardize=standardize), expected)
    losses, _ = run(student, teacher, scale=0.25, standardize=standardize, gradient=False)
    assert torch.equal(losses, expected[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtypes", [(FLOAT32, FLOAT32), (BFLOAT16, FLOAT32), (BFLOAT16, BFLOAT16)], ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(24, 19), (40, 32), (6, 1000), (2, 3000)])
def test_any_strides_give_the_same_bits(run, generator, rows, classes, dtypes, layout):
    student, teacher = make(generator, rows, classes, dtypes)
    dense = [(x[:1].expand(rows, classes) if layout == "expanded" else x).contiguous() for x in (student, teacher)]
    for shared_limit in SHARED_LIMITS:
        options = {"standardize": True, "shared_limit": shared_limit}
        expected = run(*dense, **options)
        assert_same(run(laid_out(student, layout), laid_out(teacher, layout), **options), expected)
        assert_same(run(dense[0], laid_out(teacher, layout), **options), expected)


def test_offsets_beyond_32_bits(run, generator):
    student, teacher = make(generator, 2, 40, (BFLOAT16, BFLOAT16))
    far = [torch.empty((1 << 31) + 40, dtype=BFLOAT16).as_strided((2, 40), (1 << 31, 1)) for _ in range(2)]
    for x, y in zip(far, (student, teacher), strict=True):
        x.copy_(y)
    assert_same(run(*far), run(student, teacher))


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("classes", [50, 64, 1100])
def test_equal_logits(run, generator, classes, standardize):
    student, _ = make(generator, 9, classes)
    losses, gradient = run(student, student, standardize=standardize)
    torch.testing.assert_close(losses, torch.zeros(9), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient, torch.zeros_like(student), rtol=0, atol=1e-7)


@pytest.mark.parametrize("classes", [40, 43, 1100])
def test_constant_rows_under_standardisation(run, generator, classes):
    """A row without spread standardises to zeros: the definition's value, and no NaN."""
    student, teacher = make(generator, 6, classes)
    teacher[2], weight = 5.0, torch.rand(6, generator=generator)
    losses, gradient = run(student, teacher, weight, standardize=True)
    exact_losses, exact_gradient = exactly(student, teacher, weight, standardize=True)
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-6)
    student[2] = -1.0
    losses, gradient = run(student, teacher, weight, standardize=True)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("classes", [21, 32, 1100])
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits(run, generator, classes, scale):
    student, teacher = (scale * x for x in make(generator, 15, classes))
    weight = torch.ones(15)
    losses, gradient = run(student, teacher)
    exact_losses, exact_gradient = exactly(student, teacher, weight)
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("classes", [40, 1100])
def test_close_huge_logits(run, generator, classes, standardize):
    """At 8192 float32 resolves only 1e-3: differences must be taken before anything else."""
    student, teacher = ((x * 1024).round() / 1024 + 8192 for x in make(generator, 7, classes))
    losses, gradient = run(student, teacher, standardize=standardize)
    exact_losses, exact_gradient = exactly(student, teacher, torch.ones(7), standardize=standardize)
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("classes", [20, 32, 1100])
def test_masked_classes(run, generator, classes):
    """A class that both rule out adds nothing; one that only the student rules out makes the loss infinite, not NaN."""
    student, teacher = make(generator, 8, classes)
    hidden = torch.zeros(classes, dtype=torch.bool)
    hidden[::3] = True
    hidden[8:16] = True
    masked = [x.masked_fill(hidden, -torch.inf) for x in (student, teacher)]
    weight = torch.rand(8, generator=generator)
    losses, gradient = run(*masked, weight)
    exact_losses, exact_gradient = exactly(student[:, ~hidden], teacher[:, ~hidden], weight)
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[:, ~hidden].double(), exact_gradient, rtol=1e-5, atol=1e-6)
    assert gradient[:, hidden].eq(0).all()
    losses, gradient = run(masked[0], teacher)
    assert losses.eq(torch.inf).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("classes", [33, 64, 1100])
def test_divergence_stays_visible(run, generator, classes, standardize, who):
    student, teacher = make(generator, 3, classes)
    (student if who == "student" else teacher)[1, 32] = torch.nan
    losses, gradient = run(student, teacher, standardize=standardize)
    assert losses.isnan().tolist() == [False, True, False]
    assert gradient.isnan().all(1).tolist() == [False, True, False]
    assert gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("shared_limit", SHARED_LIMITS)
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("rows", "classes"), [(300, 7), (70, 32), (101, 133), (20, 1000), (5, 2048), (5, 2100)])
def test_same_bits_in_whatever_order_threads_run(run, generator, rows, classes, standardize, shared_limit):
    student, teacher = make(generator, rows, classes, (BFLOAT16, FLOAT32))
    options = {"standardize": standardize, "shared_limit": shared_limit}
    late, early = (run(student, teacher, timing=timing, **options) for timing in emulator.TIMINGS)
    assert_same(late, early)
