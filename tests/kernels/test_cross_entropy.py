"""Triton's cross-entropy with margin against the definition in float64: rows in registers, sweeps, any values."""

import pytest
import torch
import torch.nn.functional as F

from icckd import reference
from icckd.kernels import cross_entropy as kernels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # −∞ and NaN are looked at on purpose
# The interpreter's table: rows of up to 64 lie in registers, several to a program up to 32; sweeps take 32 at a time.
SIZES = [(1, 1), (9, 1), (7, 2), (5, 3), (13, 17), (3, 64), (2, 65), (1, 96), (2, 131)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPACES = ["probability", "logit"]
IGNORED = -100


def make(generator, rows, classes, dtype=torch.float32, ignored=True):
    logits = (3 * torch.randn(rows, classes, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    if ignored and rows > 2:
        labels[1] = IGNORED
    return logits, labels


def exact(logits, labels, upstream, label_smoothing, space):
    """Rows, margins and the gradient of Σ upstream · rows of float64 logits."""
    x = logits.double().requires_grad_()
    options = {"label_smoothing": label_smoothing, "space": space, "ignore_index": IGNORED}
    rows, margin = reference.cross_entropy_with_margin(x, labels, reduction="none", **options)
    (gradient,) = torch.autograd.grad((upstream.double() * rows).sum(), x)
    return rows.detach(), margin, gradient


def same_precision(logits, labels, upstream, label_smoothing):
    """Rows and gradient as PyTorch computes them in float32."""
    x = logits.detach().clone().requires_grad_()
    rows = F.cross_entropy(x.float(), labels, reduction="none", label_smoothing=label_smoothing, ignore_index=IGNORED)
    (gradient,) = torch.autograd.grad((upstream * rows).sum(), x)
    return rows.detach(), gradient


def assert_as_accurate(actual, single, expected):
    """The error against float64 is at most twice that of PyTorch in the same precision, plus a few roundings."""
    error = (actual.double() - expected).abs().max()
    slack = 1e-6 * float(expected.abs().max()) + 1e-7
    assert error <= 2 * (single.double() - expected).abs().max() + slack


def all_results(logits, labels, upstream, label_smoothing=0.0, space="probability"):
    """Rows, margins, lse, Σ rows and the gradient of Σ upstream · rows; all operators agree on what they compute."""

    def backward(upstream):
        return kernels.cross_entropy_margin_rows_backward(upstream, lse, logits, labels, label_smoothing, IGNORED)

    def assert_same(x, y):
        assert torch.equal(x.nan_to_num(7), y.nan_to_num(7))

    rows, margin, lse = kernels.cross_entropy_margin_rows(logits, labels, label_smoothing, space, IGNORED)
    count = (labels != IGNORED).sum()
    losses = []
    for mean, factor in ((False, torch.tensor(1.0)), (True, 1 / count)):
        loss, same_margin, gradient = kernels.cross_entropy_margin_sum(
            logits, labels, mean, label_smoothing, space, IGNORED
        )
        assert_same(same_margin, margin)
        assert_same(gradient, backward(factor.expand(len(labels))))
        losses.append(loss)
    mean = (rows.double().sum() / count).float()  # the sum may be beyond float32
    torch.testing.assert_close(losses[1], mean, rtol=1e-5, atol=1e-6, equal_nan=True)
    return rows, margin, lse, losses[0], backward(upstream)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_is_as_accurate_as_pytorch(guard, generator, rows, classes, dtype, label_smoothing):
    logits, labels = make(generator, rows, classes, dtype)
    upstream = torch.randn(rows, generator=generator)
    losses, margin, lse, loss, gradient = all_results(
        guard(logits), guard(labels), guard(upstream), label_smoothing, space := SPACES[rows % 2]
    )
    exact_losses, exact_margin, exact_gradient = exact(logits, labels, upstream, label_smoothing, space)
    single_losses, single_gradient = same_precision(logits, labels, upstream, label_smoothing)
    assert (losses.dtype, margin.dtype, lse.dtype, loss.dtype) == (torch.float32,) * 4
    assert gradient.dtype == dtype
    assert_as_accurate(losses, single_losses, exact_losses)
    assert_as_accurate(gradient, single_gradient, exact_gradient)
    torch.testing.assert_close(margin, exact_margin, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss.double(), exact_losses.sum(), rtol=1e-5, atol=1e-5)
    counted = labels != IGNORED
    x = logits.double()[counted]
    torch.testing.assert_close(lse[counted].double(), x.logsumexp(1) - x.amax(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("classes", [2, 16, 17, 64, 67])
def test_label_in_every_lane(generator, classes, space):
    labels = torch.arange(classes)
    logits, upstream = torch.randn(classes, classes, generator=generator), torch.rand(classes, generator=generator)
    losses, margin, _, _, gradient = all_results(logits, labels, upstream, 0.2, space)
    exact_losses, exact_margin, exact_gradient = exact(logits, labels, upstream, 0.2, space)
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(margin, exact_margin, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", [9, 70])
def test_ignored_rows_are_not_looked_at(guard, generator, classes):
    logits, labels = make(generator, 6, classes)
    logits[1] = torch.nan
    losses, margin, lse, loss, gradient = all_results(guard(logits), labels, torch.ones(6), 0.1)
    assert (losses[1], margin[1], lse[1]) == (0, -torch.inf, 0)
    assert loss.isfinite()
    assert gradient[1].eq(0).all()
    everything = torch.full_like(labels, IGNORED)
    losses, margin, _, loss, gradient = all_results(guard(logits), everything, torch.ones(6))
    assert losses.eq(0).all()
    assert margin.eq(-torch.inf).all()
    assert loss == 0
    assert gradient.eq(0).all()


@pytest.mark.parametrize("classes", [5, 70])
@pytest.mark.parametrize("label", [-1, 70, 2**40, 2**32])
def test_label_that_names_no_class_makes_its_row_nan(guard, generator, classes, label):
    logits, labels = make(generator, 5, classes)
    labels[3] = label
    losses, margin, _, loss, gradient = all_results(guard(logits), labels, torch.ones(5))
    for result in (losses, margin, gradient[:, 0], gradient[:, -1]):
        assert result.isnan().tolist() == [False, False, False, True, False]
    assert loss.isnan()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("classes", [23, 90])
def test_masked_classes(generator, classes, space, label_smoothing):
    """Logits of −∞: finite wherever PyTorch is finite, infinite or NaN where it is."""
    logits, labels = make(generator, 12, classes, ignored=False)
    masked = torch.rand(logits.shape, generator=generator) < 0.4
    masked[2:, 40:80] = True
    logits = logits.masked_fill(masked, -torch.inf)
    labels[0] = int(masked[0].float().argmax())
    labels[1] = int(masked[1].float().argmin())
    logits[3] = -torch.inf
    logits[4] = -torch.inf
    logits[4, labels[4]] = 1.0
    upstream = torch.rand(12, generator=generator)
    losses, margin, _, _, gradient = all_results(logits, labels, upstream, label_smoothing, space)
    single_losses, single_gradient = same_precision(logits, labels, upstream, label_smoothing)
    expected_margin = reference.classification_margin(logits, labels, space=space)
    torch.testing.assert_close(losses, single_losses, rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(gradient, single_gradient, rtol=1e-5, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(margin, expected_margin, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("classes", [33, 90])
def test_divergence_stays_visible(generator, classes, poison, space):
    logits, labels = make(generator, 5, classes, ignored=False)
    labels[2], labels[3] = 0, 30
    logits[2, 30] = logits[3, 30] = poison
    logits[4, 1], logits[4, 30], labels[4] = torch.nan, torch.inf, 0
    losses, margin, _, _, gradient = all_results(logits, labels, torch.ones(5), 0.0, space)
    assert losses.isnan().tolist() == [False, False, True, True, True]
    assert gradient[2:].isnan().all()
    assert gradient[:2].isfinite().all()
    expected = reference.classification_margin(logits, labels, space=space)
    torch.testing.assert_close(margin, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("classes", [40, 100])
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits(generator, classes, scale):
    logits, labels = make(generator, 7, classes)
    upstream = torch.rand(7, generator=generator)
    losses, _, _, _, gradient = all_results(logits * scale, labels, upstream, 0.1)
    exact_losses, _, exact_gradient = exact(logits * scale, labels, upstream, 0.1, "logit")
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("classes", [40, 100])
def test_label_that_is_masked_with_the_lowest_number(generator, classes):
    logits, labels = make(generator, 3, classes, ignored=False)
    logits[torch.arange(3), labels] = torch.finfo(torch.float32).min
    losses, _, _, _, gradient = all_results(logits, labels, torch.ones(3), 0.1)
    exact_losses, _, exact_gradient = exact(logits, labels, torch.ones(3), 0.1, "logit")
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", [40, 100])
def test_close_huge_logits_keep_their_differences(generator, classes):
    logits, labels = make(generator, 7, classes)
    logits = (logits * 1024).round() / 1024 + 8192  # exact in float32, before and after the shift
    upstream = torch.rand(7, generator=generator)
    losses, _, _, _, gradient = all_results(logits, labels, upstream, 0.1)
    exact_losses, _, exact_gradient = exact(logits, labels, upstream, 0.1, "logit")
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layout", ["transposed", "expanded", "strided", "offset", "aligned"])
@pytest.mark.parametrize("classes", [24, 72])
def test_any_strides(generator, classes, layout):
    base, labels = make(generator, 10, classes)
    logits = {
        "transposed": base.T.contiguous().T,
        "expanded": base[:1].expand(10, classes),
        "strided": torch.stack([base, -base], dim=2).flatten(1)[:, ::2],
        "offset": torch.cat([base[:, :1], base], dim=1)[:, 1:],
        "aligned": torch.cat([base, base], dim=1)[:, :classes],
    }[layout]
    many = torch.randn(10, 2, generator=generator)
    for upstream in (many[:, 0], many[0, :1].expand(10)):
        actual = all_results(logits, torch.stack([labels, labels], 1)[:, 0], upstream, 0.1)
        expected = all_results(logits.contiguous(), labels, upstream.contiguous(), 0.1)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_float16_gradients_are_rounded_once(generator):
    """Small shares times a large upstream gradient: neither may be rounded to float16 on its own."""
    logits, labels = make(generator, 8, 50, torch.float16, ignored=False)
    logits[:, 3] = -10
    labels.fill_(7)
    upstream = torch.full((8,), 2.0**18)
    *_, gradient = all_results(logits, labels, upstream)
    expected = exact(logits, labels, upstream, 0.0, "logit")[2]
    torch.testing.assert_close(gradient[:, 3].double(), expected[:, 3], rtol=1e-3, atol=0)


def test_no_rows(guard):
    losses, margin, lse, loss, gradient = all_results(
        torch.empty(0, 5), torch.empty(0, dtype=torch.int64), torch.empty(0)
    )
    assert losses.shape == margin.shape == lse.shape == (0,)
    assert loss == 0
    assert gradient.shape == (0, 5)


@pytest.mark.parametrize("classes", [37, 150])
def test_same_bits_every_time(generator, classes):
    logits, labels = make(generator, 9, classes)
    upstream = torch.rand(9, generator=generator)
    first = all_results(logits, labels, upstream, 0.1)
    again = all_results(logits, labels, upstream, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
