"""cross_entropy_with_margin and classification_margin against PyTorch's cross_entropy and the definition in float64."""

import pytest
import torch
import torch.nn.functional as F

from icckd import reference
from icckd.functional import classification_margin, cross_entropy_with_margin
from tests.problems import SMALL, assert_as_accurate
from tests.problems import logits_and_labels as make
from tests.problems import loss_margin_and_gradient as loss_and_gradient

SIZES = [(1, 1), (13, 1), (7, 2), (5, 3), (31, 17), (64, 100), (3, 1000), (2, 5003)]
SPACES = ["probability", "logit"]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_is_as_accurate_as_pytorch(backend, rows, classes, dtype, label_smoothing, reduction):
    logits, labels = make(rows, classes, dtype)
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    upstream = torch.randn(rows, generator=torch.Generator().manual_seed(1)) if reduction == "none" else None
    loss, _, gradient = loss_and_gradient(
        cross_entropy_with_margin, logits, labels, upstream, backend=backend, **options
    )
    exact_loss, _, exact_gradient = loss_and_gradient(F.cross_entropy, logits.double(), labels, upstream, **options)
    torch_loss, _, torch_gradient = loss_and_gradient(
        lambda x, y, **o: F.cross_entropy(x.float(), y, **o), logits, labels, upstream, **options
    )
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert_as_accurate(loss, torch_loss, exact_loss, slack=1e-6 * float(exact_loss.abs().max()) + 1e-7)
    assert_as_accurate(gradient, torch_gradient, exact_gradient, slack=1e-6 * float(exact_gradient.abs().max()) + 1e-7)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_margin_matches_definition(backend, rows, classes, dtype, space):
    logits, labels = make(rows, classes, dtype)
    exact = reference.classification_margin(logits.double(), labels, space=space)
    options = {"space": space, "backend": backend}
    _, trained, _ = loss_and_gradient(cross_entropy_with_margin, logits, labels, **options)
    _, evaluated = cross_entropy_with_margin(logits, labels, **options)
    for margin in (trained, evaluated, classification_margin(logits, labels, space=space)):
        assert margin.dtype == torch.float32
        assert not margin.requires_grad
        torch.testing.assert_close(margin.double(), exact.double(), rtol=1e-6, atol=1e-6)


def test_margin_of_ties_and_of_a_single_class(backend):
    logits = torch.tensor([[2.0, 2.0, 0.0], [2.0, 5.0, 5.0], [5.0, 0.0, 5.0]])
    labels = torch.tensor([0, 1, 1])
    _, margin = cross_entropy_with_margin(logits, labels, space="logit", backend=backend)
    assert margin.tolist() == [0, 0, -5]
    one, zero = torch.randn(3, 1), torch.zeros(3, dtype=torch.int64)
    assert cross_entropy_with_margin(one, zero, backend=backend)[1].tolist() == [1, 1, 1]
    assert cross_entropy_with_margin(one, zero, space="logit", backend=backend)[1].tolist() == [torch.inf] * 3


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_label_in_every_lane(backend, label_smoothing):
    """The label may lie in any lane of a vector or in the tail behind the last full one."""
    for classes in (2, 7, 15, 16, 17, 31, 33, 64, 65):
        logits = torch.randn(classes, classes, generator=torch.Generator().manual_seed(classes))
        labels = torch.arange(classes)
        loss, margin, gradient = loss_and_gradient(
            cross_entropy_with_margin, logits, labels, label_smoothing=label_smoothing, space="logit", backend=backend
        )
        exact_loss, exact_margin, exact_gradient = loss_and_gradient(
            reference.cross_entropy_with_margin, logits.double(), labels, label_smoothing=label_smoothing, space="logit"
        )
        torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(margin.double(), exact_margin.double(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [0, 5])
def test_without_a_row_that_counts(backend, rows, reduction):
    logits, labels = make(rows, 4)[0], torch.full((rows,), 7)
    options = {"reduction": reduction, "ignore_index": 7}
    loss, margin, gradient = loss_and_gradient(cross_entropy_with_margin, logits, labels, backend=backend, **options)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, **options), equal_nan=True)
    evaluated, _ = cross_entropy_with_margin(logits, labels, backend=backend, **options)
    torch.testing.assert_close(evaluated, loss, equal_nan=True)
    assert gradient.eq(0).all()
    assert margin.eq(-torch.inf).all()


def test_ignored_rows_have_zero_gradient_whatever_they_hold(backend):
    logits, labels = make(6, 9)
    logits[1] = torch.nan
    for reduction in ("mean", "none"):
        loss, _, gradient = loss_and_gradient(
            cross_entropy_with_margin, logits, labels, reduction=reduction, backend=backend
        )
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert gradient[1].eq(0).all()


def test_ignore_index_may_be_a_class(backend):
    logits, labels = make(20, 5, ignored=False)
    actual = loss_and_gradient(cross_entropy_with_margin, logits, labels, ignore_index=3, backend=backend)
    expected = loss_and_gradient(F.cross_entropy, logits, labels, ignore_index=3)
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[2], expected[2])


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits(backend, scale):
    logits, labels = make(29, 37, scale=scale)
    loss, _, gradient = loss_and_gradient(cross_entropy_with_margin, logits, labels, backend=backend)
    exact = loss_and_gradient(F.cross_entropy, logits.double(), labels)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact[2], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_close_huge_logits_keep_their_differences(backend, reduction):
    """The log-sum-exp must be kept relative to the maximum: at 1e4 float32 resolves only 1e-3."""
    logits, labels = make(11, 40, scale=1.0)
    logits = ((logits * 1024).round() / 1024) + 8192  # exact in float32, before and after the shift
    loss, _, gradient = loss_and_gradient(
        cross_entropy_with_margin, logits, labels, reduction=reduction, backend=backend
    )
    exact = loss_and_gradient(F.cross_entropy, logits.double(), labels, reduction=reduction)
    torch.testing.assert_close(loss.double(), exact[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact[2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("space", SPACES)
def test_masked_classes(backend, space):
    """Logits of −inf: finite wherever PyTorch is finite, infinite where it is infinite."""
    logits, labels = make(40, 23, ignored=False)
    masked = torch.rand(logits.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    logits = logits.masked_fill(masked, -torch.inf)
    labels[0] = int(masked[0].float().argmax())
    for reduction in ("sum", "none"):
        loss, margin, gradient = loss_and_gradient(
            cross_entropy_with_margin, logits, labels, reduction=reduction, space=space, backend=backend
        )
        expected = loss_and_gradient(F.cross_entropy, logits, labels, reduction=reduction)
        torch.testing.assert_close(loss, expected[0])
        torch.testing.assert_close(gradient, expected[2], rtol=1e-5, atol=1e-7)
        assert not margin.isnan().any()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_divergence_stays_visible(backend, poison):
    logits, labels = make(4, 33, ignored=False)
    logits[2, 30] = poison
    labels[2] = 0
    loss, margin, gradient = loss_and_gradient(
        cross_entropy_with_margin, logits, labels, reduction="none", backend=backend
    )
    assert loss.isnan().tolist() == [False, False, True, False]
    assert margin.isnan().tolist() == [False, False, True, False]
    assert gradient[2].isnan().all()
    assert gradient[:2].isfinite().all()
    _, in_logits = cross_entropy_with_margin(logits, labels, space="logit", backend=backend)
    expected = reference.classification_margin(logits, labels, space="logit")
    torch.testing.assert_close(in_logits, expected, equal_nan=True)


@pytest.mark.parametrize("layout", ["transposed", "expanded", "strided", "offset"])
def test_any_strides(backend, layout):
    base, labels = make(24, 19)
    logits = {
        "transposed": base.T.contiguous().T,
        "expanded": base[:1].expand(24, 19),
        "strided": torch.stack([base, -base], dim=2).flatten(1)[:, ::2],
        "offset": torch.cat([base[:, :1], base], dim=1)[:, 1:],
    }[layout]
    labels = torch.stack([labels, labels], 1)[:, 0]
    for reduction in ("mean", "none"):
        options = {"reduction": reduction, "backend": backend}
        actual = loss_and_gradient(cross_entropy_with_margin, logits, labels, **options)
        expected = loss_and_gradient(cross_entropy_with_margin, logits.contiguous(), labels.contiguous(), **options)
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a, b)


def test_strided_and_expanded_upstream_gradients(backend):
    logits, labels = make(12, 6)
    many = torch.randn(12, 2, generator=torch.Generator().manual_seed(3))
    for upstream in (many[:, 0], many[0, :1].expand(12)):
        options = {"reduction": "none"}
        actual = loss_and_gradient(cross_entropy_with_margin, logits, labels, upstream, backend=backend, **options)
        expected = loss_and_gradient(F.cross_entropy, logits, labels, upstream, **options)
        torch.testing.assert_close(actual[2], expected[2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_integer_labels_of_any_width(backend, dtype):
    logits, labels = make(9, 5, ignored=False)
    expected = cross_entropy_with_margin(logits, labels, backend=backend)
    actual = cross_entropy_with_margin(logits, labels.to(dtype), backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_same_bits_every_time(backend, reduction):
    logits, labels = make(301, 133)
    options = {"reduction": reduction, "backend": backend}
    first = loss_and_gradient(cross_entropy_with_margin, logits, labels, **options)
    for _ in range(20):
        again = loss_and_gradient(cross_entropy_with_margin, logits, labels, **options)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_float16_gradients_do_not_underflow_under_a_loss_scale(backend):
    """As with GradScaler: p / N is below float16's smallest number, p · scale / N is not."""
    logits, labels = make(4096, 50, torch.float16, ignored=False)
    scale = torch.tensor(2.0**14)
    gradient = loss_and_gradient(cross_entropy_with_margin, logits, labels, scale, backend=backend)[2]
    exact = loss_and_gradient(F.cross_entropy, logits.double(), labels, scale)[2]
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-3, atol=1e-7)


def test_backward_twice_through_a_kept_graph(backend):
    """The gradient that the operator keeps must not be shared with the leaf that it is added to."""
    logits, labels = make(8, 5)
    logits.requires_grad_()
    loss, _ = cross_entropy_with_margin(logits, labels, backend=backend)
    (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
    once = once.clone()
    for _ in range(3):
        loss.backward(retain_graph=True)
    torch.testing.assert_close(logits.grad, 3 * once)


def test_scaled_and_shared_losses(backend):
    logits, labels = make(8, 5)
    logits.requires_grad_()
    loss, margin = cross_entropy_with_margin(logits, labels, backend=backend)
    (2.5 * loss + logits.square().sum() + margin.nan_to_num(neginf=0).sum()).backward()
    expected = 2.5 * loss_and_gradient(F.cross_entropy, logits, labels)[2] + 2 * logits.detach()
    torch.testing.assert_close(logits.grad, expected)


def test_no_gradient_asked_for(backend):
    logits, labels = make(8, 5)
    assert not cross_entropy_with_margin(logits, labels, backend=backend)[0].requires_grad
    with torch.no_grad():
        loss, _ = cross_entropy_with_margin(logits.requires_grad_(), labels, backend=backend)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(logits.detach(), labels))


def test_autocast_changes_nothing(backend):
    logits, labels = make(16, 12, torch.bfloat16)
    expected = loss_and_gradient(cross_entropy_with_margin, logits, labels, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss_and_gradient(cross_entropy_with_margin, logits, labels, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3, 1.0])
def test_gradcheck(label_smoothing, reduction):
    logits, labels = make(6, 5, torch.float64)
    options = {"label_smoothing": label_smoothing, "reduction": reduction, "backend": "reference"}
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy_with_margin(x, labels, **options)[0], logits.requires_grad_()
    )


def test_float64_is_computed_in_float64():
    logits, labels = make(6, 5, torch.float64)
    loss, margin, gradient = loss_and_gradient(cross_entropy_with_margin, logits, labels)
    expected = loss_and_gradient(F.cross_entropy, logits, labels)
    assert (loss.dtype, margin.dtype, gradient.dtype) == (torch.float64, torch.float32, torch.float64)
    torch.testing.assert_close(loss, expected[0], rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, expected[2], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("label", "shown"), [(5, "5"), (-1, "-1"), (2**40, str(2**40))])
def test_label_that_names_no_class(backend, label, shown):
    logits, labels = make(4, 5)
    labels[2] = label
    for call in (
        lambda: cross_entropy_with_margin(logits, labels, backend=backend),
        lambda: cross_entropy_with_margin(logits.clone().requires_grad_(), labels, backend=backend),
        lambda: classification_margin(logits, labels),
    ):
        with pytest.raises(ValueError, match=rf"labels holds {shown}; .* \[0, 5\)"):
            call()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": [[1.0]]}, TypeError, "logits is a list"),
        ({"logits": torch.zeros(4, dtype=torch.float32)}, ValueError, r"logits has shape \(4,\)"),
        ({"logits": torch.zeros(4, 5, dtype=torch.int64)}, TypeError, "logits has dtype torch.int64"),
        ({"logits": torch.zeros(4, 0)}, ValueError, "at least one class"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels has shape \(3,\)"),
        ({"labels": torch.zeros(4)}, TypeError, "labels has dtype torch.float32"),
        ({"labels": torch.zeros(4, dtype=torch.int64, device="meta")}, ValueError, "labels is on meta"),
        ({"space": "log"}, ValueError, "space is 'log'"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5"),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing is '0.1'"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index is 0.5"),
        ({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'"),
        ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
    ],
)
def test_wrong_arguments(change, error, message):
    logits, labels = make(4, 5)
    arguments = {"logits": logits, "labels": labels, **change}
    with pytest.raises(error, match=message):
        cross_entropy_with_margin(**arguments)
