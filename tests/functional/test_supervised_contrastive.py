"""`supervised_contrastive` against a loop over its formula, an independent library, and its own promises."""

import math
from itertools import product

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss

from icckd import BackendUnavailable, functional, reference
from icckd.functional import supervised_contrastive
from icckd.functional.supervised_contrastive import _added, _in_order
from tests.conftest import CPU_BACKENDS

REDUCTIONS = ("mean", "sum", "none")
# Triton's interpreter takes a second for every call with gradients: it computes a few of the tests.
COMPILED = [name for name in CPU_BACKENDS if name != "triton"]


@pytest.fixture(params=COMPILED)
def compiled(request):
    """The name of every backend that needs no interpreter here."""
    return request.param


def rows_of(count=30, dim=7, classes=4, dtype=torch.float64, seed=0):
    """Rows and labels from −1 up."""
    generator = torch.Generator().manual_seed(seed + 1000 * count + dim)
    features = torch.randn(count, dim, generator=generator, dtype=torch.float64).to(dtype)
    return features, torch.randint(-1, classes, (count,), generator=generator)


def by_loop(features, labels, temperature=0.1, reduction="mean"):
    """The formula of one anchor after the other, and what is made of them."""
    zero = (features == 0).all(1, keepdim=True)
    z = features / torch.where(zero, 1, features).norm(dim=1, keepdim=True) * ~zero
    similarity = z @ z.T / temperature
    losses, anchors = [features.sum() * 0], 0
    for i, label in enumerate(labels.tolist()):
        others = [j for j, other in enumerate(labels.tolist()) if other >= 0 and j != i]
        positives = [j for j in others if labels[j] == label]
        if label < 0 or not positives:
            losses.append(losses[0])
            continue
        anchors += 1
        losses.append(similarity[i, others].logsumexp(0) - similarity[i, positives].mean())
    rows = torch.stack(losses)[1:]
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / max(anchors, 1)}[reduction]


def with_gradients(function, features, labels, temperature=0.1, upstream=None, **options):
    """The loss, and its gradients with respect to features and temperature."""
    features = features.detach().requires_grad_()
    temperature = torch.tensor(temperature, dtype=torch.promote_types(features.dtype, torch.float32)).requires_grad_()
    loss = function(features, labels, temperature=temperature, **options)
    upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss)
    gradients = torch.autograd.grad(loss, (features, temperature), upstream, allow_unused=True)
    zeros = (torch.zeros_like(features), torch.zeros_like(temperature))
    return loss.detach(), *(z if g is None else g for g, z in zip(gradients, zeros, strict=True))


def assert_as_exact_as_pytorch(backend, features, labels, temperature=0.1, num_classes=None, **options):
    """The largest error is at most twice that of the definition in the inputs' own precision, or rounding."""
    options["temperature"] = temperature
    exact = with_gradients(by_loop, features.double(), labels, **options)
    plain = with_gradients(reference.supervised_contrastive, features, labels, **options)
    computed = with_gradients(
        supervised_contrastive, features, labels, num_classes=num_classes, backend=backend, **options
    )
    kappa, rows = 1 / temperature, 1 if options.get("reduction", "mean") == "mean" else len(labels)
    shortest = features.double().norm(dim=1).where(features.any(1), 1).amin().item()
    # Similarities are off by a rounding, and the exponentials relatively by that times κ. Large terms cancel.
    off = 5e-7 * max(1, kappa) + 4 * torch.finfo(features.dtype).eps
    allowed = (1e-6 * max(1, kappa), off * kappa / shortest, 5e-7 * rows * kappa**2 * max(1, kappa))
    for x, y, z, rounding in zip(computed, plain, exact, allowed, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        error, budget = ((v.double() - z).abs().max() for v in (x, y))
        assert error <= 2 * budget + rounding


FORMS = [*product(COMPILED, REDUCTIONS, [None, 4, 1000]), ("triton", "mean", 4), ("triton", "none", None)]


@pytest.mark.parametrize(("backend", "reduction", "num_classes"), [form for form in FORMS if form[0] in CPU_BACKENDS])
def test_is_the_formula(backend, reduction, num_classes):
    for dtype in (torch.float64, torch.float32) if backend == "reference" else (torch.float32,):
        features, labels = rows_of(dtype=dtype)
        upstream = torch.rand(30) if reduction == "none" else None
        options = {"reduction": reduction, "num_classes": num_classes, "upstream": upstream, "backend": backend}
        close = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
        computed = with_gradients(supervised_contrastive, features, labels, **options)
        expected = with_gradients(by_loop, features.double(), labels, reduction=reduction, upstream=upstream)
        for x, y in zip(computed, expected, strict=True):
            torch.testing.assert_close(x.double(), y, **close)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_definition_is_the_formula(reduction):
    features, labels = rows_of()
    features[:3], features[5] = 0, features[4]
    for x, y in zip(
        with_gradients(reference.supervised_contrastive, features, labels, reduction=reduction),
        with_gradients(by_loop, features, labels, reduction=reduction),
        strict=True,
    ):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("count", "dim", "classes", "dtype"),
    [
        (1, 1, 1, torch.float32),
        (2, 3, 1, torch.bfloat16),
        (29, 17, 5, torch.float16),
        (26, 5, 300, torch.float32),
        (101, 70, 40, torch.float16),
        (149, 130, 6, torch.float32),
    ],
    ids=str,
)
def test_shapes_and_dtypes(backend, count, dim, classes, dtype):
    if backend == "triton" and not 26 <= count <= 29:
        pytest.skip("Triton's interpreter takes long; tests/gpu has more rows")
    features, labels = rows_of(count, dim, classes, dtype)
    features[: count // 10] = 0
    assert_as_exact_as_pytorch(backend, features, labels, num_classes=classes)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 50.0])
def test_temperatures_with_rows_that_agree_and_oppose_each_other(compiled, temperature):
    features, labels = rows_of(dtype=torch.float32)
    features[1], features[2], features[5] = features[0], -features[0], 0
    labels[:6] = torch.tensor([0, 0, 0, 1, 1, 1])
    for reduction in ("mean", "none"):
        assert_as_exact_as_pytorch(compiled, features, labels, temperature, reduction=reduction)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_two_rows(compiled, temperature):
    """Of which each is the other's only candidate: ℓ = 0, even if they oppose each other and 1 − exp(−e) is 1/2."""
    x = torch.randn(1, 5)
    for y in (x, -x, torch.zeros(1, 5), torch.randn(1, 5)):
        options = {"temperature": temperature, "reduction": "none", "backend": compiled}
        computed = with_gradients(supervised_contrastive, torch.cat([x, y]), torch.tensor([3, 3]), **options)
        for z, atol in zip(computed, (1e-6, 3e-6, 5e-6 / temperature), strict=True):
            torch.testing.assert_close(z, torch.zeros_like(z), rtol=0, atol=atol / temperature)


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures_stay_finite(compiled, temperature):
    features, labels = rows_of(dtype=torch.float32)
    features[1] = -features[0]
    for x in with_gradients(supervised_contrastive, features, labels, temperature, backend=compiled):
        assert x.isfinite().all()


def test_a_small_float16_gradient_survives_under_a_loss_scale(compiled):
    features, labels = rows_of(count=60, dtype=torch.float16)
    features *= 30
    scale = torch.tensor(2.0**14)
    _, gradient, _ = with_gradients(supervised_contrastive, features, labels, upstream=scale, backend=compiled)
    _, expected, _ = with_gradients(by_loop, features.double(), labels, upstream=scale)
    torch.testing.assert_close(gradient.double(), expected, rtol=5e-3, atol=2e-3 * expected.abs().max().item())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction):
    features, labels = rows_of(count=11, dim=3, classes=3)
    features[1] = features[0]
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def loss(x, t):
        return supervised_contrastive(x, labels, temperature=t, reduction=reduction)

    assert torch.autograd.gradcheck(loss, [features.requires_grad_(), temperature])


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_is_what_pytorch_metric_learning_computes(compiled, temperature):
    features, labels = rows_of(count=50, dtype=torch.float32)
    features, labels = features[labels >= 0], labels[labels >= 0]
    loss = supervised_contrastive(features, labels, temperature=temperature, backend=compiled)
    torch.testing.assert_close(loss, SupConLoss(temperature)(features, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", [[], [2], [-1, -7, -1], [0, 1, 2, 3], [0, -1, 1], [5]], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_batches_without_anchors(compiled, reduction, labels):
    features = torch.randn(len(labels), 4)
    for x in with_gradients(
        supervised_contrastive, features, torch.tensor(labels, dtype=torch.int64), reduction=reduction, backend=compiled
    ):
        assert torch.equal(x, torch.zeros_like(x))


def test_ignored_rows_are_not_read(compiled):
    features, labels = rows_of(dtype=torch.float32)
    ignored = labels < 0
    expected = with_gradients(by_loop, features[~ignored].double(), labels[~ignored])
    features[ignored] = torch.nan
    for num_classes in (None, 4):
        loss, gradient, d_temperature = with_gradients(
            supervised_contrastive, features, labels, num_classes=num_classes, backend=compiled
        )
        torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient[~ignored].double(), expected[1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(d_temperature.double(), expected[2], rtol=1e-4, atol=1e-3)
        assert not gradient[ignored].any()


def test_zero_rows_have_no_gradient(compiled):
    features, labels = rows_of(dtype=torch.float32)
    features[:4] = 0
    labels[:5] = 1
    assert_as_exact_as_pytorch(compiled, features, labels)
    _, gradient, _ = with_gradients(supervised_contrastive, features, labels, backend=compiled)
    assert not gradient[:4].any()


def test_labels_of_any_integer_type(compiled):
    features, labels = rows_of(dtype=torch.float32)
    expected = supervised_contrastive(features, labels.clamp(min=0), backend=compiled)
    for dtype in (torch.uint8, torch.int8, torch.int32, torch.uint32):
        assert torch.equal(supervised_contrastive(features, labels.clamp(min=0).to(dtype), backend=compiled), expected)
    # Classes are no places: their numbers may be anything.
    wide = labels.clamp(min=0) * 10**15 + 7
    torch.testing.assert_close(supervised_contrastive(features, wide, backend=compiled), expected)


def test_bits_strides_and_autocast(compiled):
    features, labels = rows_of(dtype=torch.float32)
    expected = with_gradients(supervised_contrastive, features, labels, backend=compiled)
    scattered = torch.stack([labels, labels], 1)[:, 0]
    with torch.autocast("cpu", torch.bfloat16):
        computed = with_gradients(supervised_contrastive, features.T.contiguous().T, scattered, backend=compiled)
    for x, y in zip(computed, expected, strict=True):
        assert torch.equal(x, y)


def test_both_ways_to_add_the_rows_of_a_class():
    """Of places with no rows, one, and many; `_in_order` divides all, as there are many rows."""
    rows, place = torch.randn(500, 3, dtype=torch.float64), torch.randint(4, (500,)) + (torch.arange(500) == 0).int()
    expected = torch.stack([rows[place == k].sum(0) for k in range(6)])
    for sums in (_added, _in_order):
        torch.testing.assert_close(sums(rows, place, 6), expected)


@pytest.mark.slow
def test_it_is_compiled():
    features, labels = rows_of(dtype=torch.float32)
    expected = with_gradients(supervised_contrastive, features, labels, num_classes=4)
    function = torch.compile(supervised_contrastive, backend="aot_eager", fullgraph=True)
    for x, y in zip(with_gradients(function, features, labels, num_classes=4), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_it_is_mapped_and_differentiated_by_transforms():
    features, labels = rows_of(dtype=torch.float32)
    batch = torch.stack([features, features.flip(0)])
    mapped = torch.vmap(lambda x: supervised_contrastive(x, labels))(batch)
    torch.testing.assert_close(mapped, torch.stack([supervised_contrastive(x, labels) for x in batch]))
    _, expected, _ = with_gradients(supervised_contrastive, features, labels)
    gradient = torch.func.grad(lambda x: supervised_contrastive(x, labels))(features)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_a_second_derivative_is_refused():
    features, labels = rows_of(dtype=torch.float32)
    features.requires_grad_()
    (gradient,) = torch.autograd.grad(supervised_contrastive(features, labels), features, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once only"):
        torch.autograd.grad(gradient.square().sum(), features)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"features": torch.ones(3)}, ValueError, r"features has shape \(3,\); it should be \(N, D\)"),
        ({"features": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "features has dtype torch.int64"),
        ({"features": "rows"}, TypeError, "features is a str"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, ValueError, r"labels has shape \(4,\); it should be \(3,\)"),
        ({"labels": torch.zeros(3)}, TypeError, "labels has dtype torch.float32"),
        ({"labels": torch.zeros(3, dtype=torch.int64, device="meta")}, ValueError, "labels is on meta"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ({"temperature": torch.ones(2)}, ValueError, r"temperature has shape \(2,\)"),
        ({"temperature": torch.tensor(math.nan)}, ValueError, "temperature is nan"),
        ({"reduction": "median"}, ValueError, "reduction is 'median'"),
        ({"num_classes": 0}, ValueError, "num_classes is 0"),
        ({"num_classes": 2}, ValueError, "labels reach 2; they should be below num_classes = 2"),
        ({"backend": "abacus"}, ValueError, "backend is 'abacus'"),
        ({"backend": "cuda"}, BackendUnavailable, "backend 'cuda' cannot run here"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(changes, error, said):
    arguments = {"features": torch.ones(3, 2), "labels": torch.tensor([0, 1, 2])} | changes
    features, labels = arguments.pop("features"), arguments.pop("labels")
    with pytest.raises(error, match=said):
        functional.supervised_contrastive(features, labels, **arguments)
