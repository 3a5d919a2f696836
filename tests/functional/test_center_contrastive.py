"""center_contrastive against its formula, row by row, in float64."""

import math

import pytest
import torch
from torch.func import grad, jvp, vmap

from icckd import reference
from icckd.backends import center_contrastive as chunked
from icckd.backends import native
from icckd.functional import center_contrastive
from tests.problems import SMALL, assert_as_accurate

# By reduction, which has nothing to do with them.
SETTINGS = {
    "mean": {},
    "sum": {"scale": 8.0, "margin": 0.0, "weight": 0.0},
    "none": {"scale": 16.0, "margin": 0.5, "weight": 3.0},
}
SIZES = [(1, 1, torch.float32), (2, 3, torch.float32), *((23, 7, dtype) for dtype in SMALL)]


def make(rows=23, classes=7, dim=5, dtype=torch.float32, seed=0):
    """Rows near their centre, centres, and labels, the second of three or more negative."""
    generator = torch.Generator().manual_seed(seed + 1000 * rows + classes)
    labels = torch.randint(classes, (rows,), generator=generator)
    centers = torch.randn(classes, dim, generator=generator) * 2
    features = centers[labels] + torch.randn(rows, dim, generator=generator)
    if rows > 2:
        labels[1] = -3
    return features.to(dtype), centers.to(dtype), labels


def loop(features, centers, labels, scale=64.0, margin=0.2, weight=1.0, reduction="mean"):
    """The formula in float64, one row after the other."""
    x = [row / row.norm() for row in features.double()]
    c = [row / row.norm() for row in centers.double()]
    rows = []
    for row, label in zip(x, labels.tolist(), strict=True):
        if label < 0:
            rows.append(row.sum() * 0)
            continue
        true = scale * (c[label] @ row - margin)
        others = [scale * (c[j] @ row) for j in range(len(c)) if j != label]
        rows.append(torch.stack([true, *others]).logsumexp(0) - true - 2 * weight * (c[label] @ row))
    rows = torch.stack(rows)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / (labels >= 0).sum()


def results(function, features, centers, labels, upstream=None, **options):
    """The loss, and the gradients of rows and centres."""
    features, centers = (x.detach().requires_grad_() for x in (features, centers))
    loss = function(features, centers, labels, **options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream.to(loss))
    return loss.detach(), features.grad, centers.grad


@pytest.mark.parametrize("reduction", SETTINGS)
@pytest.mark.parametrize(("rows", "classes", "dtype"), SIZES)
def test_is_the_formula(backend, rows, classes, dtype, reduction):
    inputs = make(rows, classes, dtype=dtype)
    upstream = torch.randn(rows, generator=torch.Generator().manual_seed(1)) if reduction == "none" else None
    options = {"reduction": reduction, **SETTINGS[reduction]}
    actual = results(center_contrastive, *inputs, upstream, backend=backend, **options)
    exact = results(loop, *(x.double() if x.is_floating_point() else x for x in inputs), upstream, **options)
    plain = results(reference.center_contrastive, *inputs, upstream, **options)
    assert [x.dtype for x in actual] == [torch.float32, dtype, dtype]
    for x, same, truth in zip(actual, plain, exact, strict=True):
        assert_as_accurate(x, same, truth, slack=4e-6 * float(truth.abs().max()) + 4e-6)
    with torch.no_grad():
        evaluated = center_contrastive(*inputs, backend=backend, **options)
    torch.testing.assert_close(evaluated, actual[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("reduction", SETTINGS)
def test_the_definition_is_the_formula(reduction):
    inputs, settings = make(dtype=torch.float64), SETTINGS[reduction]
    actual = results(reference.center_contrastive, *inputs, reduction=reduction, **settings)
    torch.testing.assert_close(actual, results(loop, *inputs, reduction=reduction, **settings))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("numbers", [1, 14, 160, 161])
def test_chunks_are_the_whole(monkeypatch, numbers, reduction):
    """A row at a time, two rows of seven logits, all rows but one, and all."""
    inputs = make()
    upstream = torch.randn(23, generator=torch.Generator().manual_seed(1)) if reduction == "none" else None
    expected = results(center_contrastive, *inputs, upstream, reduction=reduction)
    monkeypatch.setattr(chunked, "CHUNK", numbers)
    actual = results(center_contrastive, *inputs, upstream, reduction=reduction)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_never_holds_more_logits_than_a_chunk(monkeypatch):
    seen, original = [], native.cross_entropy_margin_sum
    monkeypatch.setattr(chunked, "CHUNK", 40)
    monkeypatch.setattr(
        native, "cross_entropy_margin_sum", lambda *given: seen.append(given[0].numel()) or original(*given)
    )
    results(center_contrastive, *make(), backend="cpu")
    assert seen == [35, 35, 35, 35, 21]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(monkeypatch, reduction):
    features, centers, labels = make(6, 4, 3, torch.float64)
    monkeypatch.setattr(chunked, "CHUNK", 12)

    def loss(x, c):
        return center_contrastive(x, c, labels, scale=4.0, weight=0.5, reduction=reduction)

    inputs = features.requires_grad_(), centers.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=reduction != "none")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_of_one_side_only(which, reduction):
    inputs = list(make())
    expected = results(center_contrastive, *inputs, reduction=reduction)[1 + which]
    inputs[which].requires_grad_()
    center_contrastive(*inputs, reduction=reduction).sum().backward()
    torch.testing.assert_close(inputs[which].grad, expected)
    assert inputs[1 - which].grad is None


@pytest.mark.parametrize("function", [center_contrastive, reference.center_contrastive])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_of_an_ignored_row_is_looked_at(function, reduction):
    features, centers, labels = make()
    expected = results(function, features, centers, labels, reduction=reduction)
    actual = results(
        function, features.masked_fill((labels < 0)[:, None], torch.nan), centers, labels, reduction=reduction
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [0, 4])
def test_without_a_row_that_counts(rows, reduction):
    features, centers, labels = make(rows, 5)
    actual = results(center_contrastive, features, centers, torch.full_like(labels, -1), reduction=reduction)
    assert all(x.eq(0).all() for x in actual)
    assert actual[0].shape == ((rows,) if reduction == "none" else ())


def test_ignored_rows_and_zero_vectors_have_no_gradient(backend):
    features, centers, labels = make()
    features[0], centers[2] = 0, 0
    labels[0] = 2
    for reduction in ("mean", "none"):
        loss, d_features, d_centers = results(
            center_contrastive, features, centers, labels, reduction=reduction, backend=backend
        )
        expected = reference.center_contrastive(features.double(), centers.double(), labels, reduction=reduction)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
        assert d_features[:2].eq(0).all()
        assert d_centers[2].eq(0).all()
        assert d_features[2:].abs().amin(0).gt(0).all()
        if reduction == "none":
            assert loss[1] == 0


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_lengths_do_not_matter(scale):
    features, centers, labels = make()
    loss, gradient, _ = results(center_contrastive, features, centers, labels)
    other, its_gradient, _ = results(center_contrastive, features * scale, centers, labels)
    torch.testing.assert_close(other, loss)
    torch.testing.assert_close(its_gradient.double() * scale, gradient.double(), rtol=1e-4, atol=1e-6)


def test_a_row_at_its_own_centre_has_the_loss_that_the_formula_says():
    loss = center_contrastive(torch.eye(3), 2 * torch.eye(3), torch.arange(3), scale=10.0, margin=0.1, weight=0.7)
    assert float(loss) == pytest.approx(math.log1p(2 * math.exp(-9)) - 1.4, abs=1e-6)


def test_under_autocast_stays_in_float32(backend):
    inputs = make(dim=64)
    expected = results(center_contrastive, *inputs, reduction="none", backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = results(center_contrastive, *inputs, reduction="none", backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_func(reduction):
    features, centers, labels = make(dtype=torch.float64)

    def loss(function):
        return lambda x, c: function(x, c, labels, scale=4.0, reduction=reduction).square().sum()

    own, definition = map(loss, (center_contrastive, reference.center_contrastive))
    expected = grad(definition, (0, 1))(features, centers)
    torch.testing.assert_close(grad(own, (0, 1))(features, centers), expected)
    batch = torch.stack([features, -features])
    mapped = vmap(grad(own), (0, None))(batch, centers)
    torch.testing.assert_close(mapped, torch.stack([grad(definition)(x, centers) for x in batch]))
    if reduction == "mean":
        _, tangent = jvp(own, (features, centers), (centers[labels], centers))
        _, expected = jvp(definition, (features, centers), (centers[labels], centers))
        torch.testing.assert_close(tangent, expected)
    else:
        with pytest.raises(RuntimeError, match="no derivative in forward mode with reduction='none'"):
            jvp(own, (features, centers), (features, centers))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_are_refused(reduction):
    features, centers, labels = make()
    loss = center_contrastive(features.requires_grad_(), centers, labels, reduction=reduction).sum()
    (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
    with pytest.raises(RuntimeError, match="icckd's losses can be differentiated once only"):
        gradient.square().sum().backward()


@pytest.mark.parametrize("label", [7, 2**40])
def test_a_label_beyond_the_classes(backend, label):
    features, centers, labels = make()
    labels[4] = label
    for reduction in ("mean", "none"):
        with pytest.raises(ValueError, match=rf"labels holds {label}; each should be below 7, the classes of centers"):
            center_contrastive(features.requires_grad_(), centers, labels, reduction=reduction, backend=backend)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": [[1.0]]}, TypeError, "features is a list"),
        ({"features": torch.zeros(4)}, ValueError, r"features has shape \(4,\)"),
        ({"centers": torch.zeros(3, 6)}, ValueError, r"centers has shape \(3, 6\); it should be \(N, 5\)"),
        ({"centers": torch.zeros(0, 5)}, ValueError, "at least one row, a class's centre"),
        ({"centers": torch.zeros(3, 5, device="meta")}, ValueError, "centers is on meta"),
        ({"centers": torch.zeros(3, 5, dtype=torch.int64)}, TypeError, "centers has dtype torch.int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels has shape \(3,\)"),
        ({"labels": torch.zeros(4)}, TypeError, "labels has dtype torch.float32"),
        ({"labels": torch.zeros(4, dtype=torch.int64, device="meta")}, ValueError, "labels is on meta"),
        ({"scale": 0}, ValueError, "scale is 0"),
        ({"margin": -0.1}, ValueError, "margin is -0.1"),
        ({"weight": "1"}, TypeError, "weight is '1'"),
        ({"reduction": "batchmean"}, ValueError, "reduction is 'batchmean'"),
        ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {"features": torch.zeros(4, 5), "centers": torch.zeros(3, 5), "labels": torch.zeros(4).long(), **change}
    with pytest.raises(error, match=message):
        center_contrastive(**arguments)


def test_compiled_code_need_not_look_into_what_a_device_has(monkeypatch):
    # As with PyTorch 2.11, whose compiler cannot follow this function.
    monkeypatch.setattr(torch.amp, "is_autocast_available", torch.compiler.disable(lambda kind: kind == "cpu"))
    torch.compiler.reset()
    features, centers, labels = torch.randn(6, 4), torch.randn(3, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    compiled = torch.compile(center_contrastive, fullgraph=True, backend="eager")
    expected = center_contrastive(features, centers, labels, backend="reference")
    assert compiled(features, centers, labels, backend="reference") == expected
