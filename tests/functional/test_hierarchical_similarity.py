"""hierarchical_similarity against a loop over anchors in float64: classes of every size, edges, modes, wrong calls."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from icckd import reference
from icckd.backends import eager
from icckd.functional import hierarchical_similarity
from tests.problems import SMALL, assert_as_accurate

OTHERS = {"gamma": 0.3, "rho": 3.0, "positive_scale": 1.5, "negative_scale": 20.0}


def make(rows, dim, classes, dtype=torch.float32, seed=0, scale=1.0):
    """Rows around their classes' centres, another view of each, and labels from −1 up, with gaps."""
    generator = torch.Generator().manual_seed(seed + 1000 * rows + dim)
    labels = torch.randint(-1, classes, (rows,), generator=generator)
    centers = torch.randn(classes + 1, dim, generator=generator)
    features = centers[labels] + torch.randn(rows, dim, generator=generator)
    augmented = features + 0.5 * torch.randn(rows, dim, generator=generator)
    return (scale * features).to(dtype), (3 * scale * augmented).to(dtype), torch.where(labels > 1, 7 * labels, labels)


def loop(features, labels, augmented=None, gamma=0.5, rho=2.0, positive_scale=2.0, negative_scale=50.0):
    """The formula, term by term; margins are numbers, so that no gradient flows through them."""
    rows = [i for i, label in enumerate(labels.tolist()) if label >= 0]
    label = {i: int(labels[i]) for i in rows}
    z = {i: features[i] / features[i].norm() for i in rows}
    cosine = {(i, j): z[i] @ z[j] for i in rows for j in rows if i != j}
    of_classes = {}
    for (i, j), s in cosine.items():
        of_classes.setdefault((label[i], label[j]), []).append(float(s.detach()))
    mean = {pair: sum(values) / len(values) for pair, values in of_classes.items()}
    low, high = min(mean.values(), default=0), max(mean.values(), default=0)
    scaled = {pair: 0.2 * (s - low) / (high - low) if high - low > 1e-13 else 0.0 for pair, s in mean.items()}
    losses = []
    for i in rows:
        a = label[i]
        own = [cosine[i, j] - gamma - scaled[a, a] for j in rows if j != i and label[j] == a]
        other = [cosine[i, j] - gamma + scaled[a, label[j]] for j in rows if label[j] != a]
        loss = 0 * features.sum()
        if own:
            loss = loss + torch.log(1 + sum(torch.exp(-positive_scale * x) for x in own)) / positive_scale
        if other:
            loss = loss + torch.log(1 + sum(torch.exp(negative_scale * x) for x in other)) / negative_scale
        if augmented is not None:
            least = min(of_classes.get((a, a), [1.0]))
            agreement = z[i] @ augmented[i] / augmented[i].norm()
            loss = loss + torch.log(1 + torch.exp(-rho * (agreement - least))) / rho
        losses.append(loss)
    return sum(losses) / len(losses) if losses else 0 * features.sum()


def with_gradients(function, features, augmented, labels, **options):
    """The loss, and the gradients of the features and of the augmented rows, if there are any."""
    given = [x.detach().requires_grad_() for x in (features, augmented) if x is not None]
    views = {} if augmented is None else {"augmented": given[1]}
    loss = function(given[0], labels, **views, **options)
    return loss.detach(), *torch.autograd.grad(3 * loss, given, allow_unused=True)


def assert_close(actual, expected, rtol=1e-10, atol=1e-12):
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, torch.zeros_like(x) if y is None else y, rtol=rtol, atol=atol, check_dtype=False)


@pytest.mark.parametrize("options", [{}, OTHERS], ids=["defaults", "others"])
@pytest.mark.parametrize("view", [False, True], ids=["alone", "augmented"])
@pytest.mark.parametrize(("rows", "dim", "classes"), [(1, 3, 1), (2, 1, 1), (5, 4, 9), (13, 7, 1), (23, 5, 4)])
@pytest.mark.parametrize(
    "function", [hierarchical_similarity, reference.hierarchical_similarity], ids=["fast", "dense"]
)
def test_is_the_loop_in_double_precision(function, rows, dim, classes, view, options):
    features, augmented, labels = make(rows, dim, classes, torch.float64)
    augmented = augmented if view else None
    expected = with_gradients(loop, features, augmented, labels, **options)
    assert_close(with_gradients(function, features, augmented, labels, **options), expected)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "dim", "classes"), [(6, 3, 6), (41, 17, 5), (64, 32, 40), (130, 33, 3)])
def test_is_as_accurate_as_the_definition(rows, dim, classes, dtype):
    features, augmented, labels = make(rows, dim, classes, dtype)
    actual = with_gradients(hierarchical_similarity, features, augmented, labels)
    exact = with_gradients(reference.hierarchical_similarity, features.double(), augmented.double(), labels)
    plain = with_gradients(reference.hierarchical_similarity, features, augmented, labels)
    assert [x.dtype for x in actual] == [torch.float32, dtype, dtype]
    for x, y, z in zip(actual, plain, exact, strict=True):
        assert_as_accurate(x, y, z, slack=2e-6 * float(z.abs().max()) + 1e-7)


@pytest.mark.parametrize("tile", [1, 200, 1000])
@pytest.mark.parametrize("classes", [1, 4, 60])
def test_chunks_of_anchors_make_no_difference(monkeypatch, tile, classes):
    features, augmented, labels = make(61, 5, classes, torch.float64)
    monkeypatch.setattr(eager.hierarchical, "_TILE", tile)
    monkeypatch.setattr(eager.hierarchical, "_MIN_ANCHORS", 7)
    expected = with_gradients(reference.hierarchical_similarity, features, augmented, labels)
    assert_close(with_gradients(hierarchical_similarity, features, augmented, labels), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("labels", [[0] * 5, [3, 3, 1, 1, 1], [4, 3, 2, 1, 0]], ids=str)
def test_equal_rows_have_no_spread(labels, dtype):
    """Every similarity is 1 and so is M_a; Ŝ is 0."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 37, generator=generator, dtype=dtype).expand(5, 37)
    labels = torch.tensor(labels)
    expected = 0.0
    for label in labels:
        own, other = int((labels == label).sum()) - 1, int((labels != label).sum())
        expected += math.log1p(own * math.exp(-1)) / 2 + math.log1p(other * math.exp(25)) / 50 + math.log(2) / 2
    for function in (hierarchical_similarity, reference.hierarchical_similarity):
        loss = function(features, labels, augmented=features)
        torch.testing.assert_close(float(loss), expected / 5, rtol=1e-5, atol=0)


def test_ignored_rows_take_no_part():
    features, augmented, labels = make(23, 5, 3, torch.float64)
    ignored = labels < 0
    assert 0 < ignored.sum() < 23
    rest = with_gradients(hierarchical_similarity, features[~ignored], augmented[~ignored], labels[~ignored])
    features[ignored] = augmented[ignored] = torch.nan
    loss, *gradients = with_gradients(hierarchical_similarity, features, augmented, labels)
    assert_close([loss, *(x[~ignored] for x in gradients)], rest)
    assert all(x[ignored].eq(0).all() for x in gradients)


@pytest.mark.parametrize("rows", [0, 4])
@pytest.mark.parametrize(
    "function", [hierarchical_similarity, reference.hierarchical_similarity], ids=["fast", "dense"]
)
def test_no_anchors(function, rows):
    features = torch.randn(rows, 3)
    loss, *gradients = with_gradients(function, features, features, torch.full((rows,), -1))
    assert loss == 0
    assert all(x.shape == (rows, 3) and x.eq(0).all() for x in gradients)


def test_zero_rows_and_large_and_small_ones():
    """A zero row is similar to none, and has no gradient; lengths make no difference."""
    features, augmented, labels = make(12, 6, 3, torch.float32)
    labels[:2] = 0
    features[0] = augmented[1] = 0
    loss, of_features, of_augmented = with_gradients(hierarchical_similarity, features, augmented, labels)
    exact = with_gradients(reference.hierarchical_similarity, features.double(), augmented.double(), labels)
    assert_close((loss, of_features, of_augmented), exact, rtol=1e-4, atol=1e-6)
    assert of_features[0].eq(0).all()
    assert of_augmented[1].eq(0).all()
    for scale in (1e-25, 1e25):
        changed = with_gradients(hierarchical_similarity, features * scale, augmented, labels)
        assert_close((changed[0], changed[1] * scale, changed[2]), (loss, of_features, of_augmented), 1e-4, 1e-6)


@pytest.mark.parametrize(
    "options", [{"negative_scale": 1e4}, {"positive_scale": 1e4}, {"negative_scale": 1e-3}], ids=str
)
def test_large_and_small_scales(options):
    features, augmented, labels = make(30, 8, 4)
    actual = with_gradients(hierarchical_similarity, features, augmented, labels, **options)
    exact = with_gradients(reference.hierarchical_similarity, features.double(), augmented.double(), labels, **options)
    assert_close(actual, exact, rtol=2e-2, atol=2e-4)


def test_nan_stays_visible():
    features, _, labels = make(9, 4, 2)
    features[labels.argmax(), 1] = torch.nan
    assert hierarchical_similarity(features, labels).isnan()


@pytest.mark.parametrize("labels", [torch.int32, torch.uint8], ids=str)
def test_narrow_labels_strides_and_autocast(labels):
    features, augmented, wide = make(20, 6, 5)
    wide = wide.clamp(min=0)
    expected = with_gradients(hierarchical_similarity, features, augmented, wide)
    strided = features.T.contiguous().T, torch.cat([augmented, augmented], 1)[:, 6:]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = with_gradients(hierarchical_similarity, *strided, wide.to(labels))
    assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_two_dtypes():
    features, augmented, labels = make(20, 6, 5, torch.float64)
    loss, gradient, of_augmented = with_gradients(hierarchical_similarity, features.half(), augmented, labels)
    assert (loss.dtype, gradient.dtype, of_augmented.dtype) == (torch.float64, torch.float16, torch.float64)
    assert_close([loss], [loop(features.half().double(), labels, augmented)])


# --- PyTorch's modes --------------------------------------------------------------------------------------------------


def test_torch_func_and_forward_mode():
    features, augmented, labels = make(9, 4, 3)
    exact = features.double(), augmented.double()

    def f(x, y):
        return hierarchical_similarity(x, labels, augmented=y)

    def definition(x, y):
        return reference.hierarchical_similarity(x, labels, augmented=y)

    for argnums in (0, 1):
        expected = torch.autograd.functional.jacobian(definition, exact)[argnums]
        torch.testing.assert_close(grad(f, argnums)(features, augmented).double(), expected, rtol=1e-4, atol=1e-6)
    many = vmap(f, (0, None))(torch.stack([features, -augmented]), augmented)
    expected = torch.stack([definition(*exact), definition(-exact[1], exact[1])])
    torch.testing.assert_close(many.double(), expected, rtol=1e-5, atol=0)
    tangent = jvp(f, (features, augmented), (augmented, features))[1]
    expected = sum(
        (a * b).sum() for a, b in zip(torch.autograd.functional.jacobian(definition, exact), exact[::-1], strict=True)
    )
    torch.testing.assert_close(tangent.double(), expected, rtol=1e-4, atol=1e-6)


def test_second_derivatives_are_refused():
    features, _, labels = make(9, 4, 3)
    features.requires_grad_()
    (gradient,) = torch.autograd.grad(hierarchical_similarity(features, labels), features, create_graph=True)
    with pytest.raises(RuntimeError, match="icckd's losses can be differentiated once only"):
        gradient.square().sum().backward()


def test_compiles_whole():
    def step(features, augmented, labels):
        return 3 * hierarchical_similarity(2 * features, labels, augmented=augmented)

    torch._dynamo.reset()
    features, augmented, labels = make(9, 4, 3)
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        x = features.clone().requires_grad_()
        loss = function(x, augmented, labels)
        loss.backward()
        results.append((loss.detach(), x.grad))
    assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_without_values_and_recorded():
    with FakeTensorMode():
        x = torch.randn(7, 6, requires_grad=True)
        loss = hierarchical_similarity(x, torch.zeros(7, dtype=torch.int64), augmented=x)
        loss.backward()
    assert (loss.shape, loss.dtype, x.grad.shape) == ((), torch.float32, (7, 6))

    def f(features, augmented, labels):
        return hierarchical_similarity(features, labels, augmented=augmented)

    others = make(14, 4, 3)
    for graph in (make_fx(f, tracing_mode="symbolic")(*make(9, 4, 3)), torch.jit.trace(f, make(9, 4, 3))):
        torch.testing.assert_close(graph(*others), f(*others))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": [1.0]}, TypeError, "features is a list"),
        ({"features": torch.zeros(4, 5, dtype=torch.int64)}, TypeError, "features has dtype torch.int64"),
        ({"features": torch.zeros(4)}, ValueError, r"features has shape \(4,\)"),
        ({"labels": torch.zeros(4)}, TypeError, "labels has dtype torch.float32; it should be an integer type"),
        ({"labels": torch.zeros(3).long()}, ValueError, r"labels has shape \(3,\); it should be \(4,\)"),
        ({"labels": torch.zeros(4, device="meta").long()}, ValueError, "labels is on meta; it should be on cpu"),
        ({"augmented": torch.zeros(4, 4)}, ValueError, r"augmented has shape \(4, 4\); it should be \(4, 5\)"),
        ({"gamma": "half"}, TypeError, "gamma is 'half'; it should be a number"),
        ({"gamma": math.nan}, ValueError, "gamma is nan; it should be a finite number"),
        ({"rho": 0}, ValueError, "rho is 0; it should be a finite number above 0"),
        ({"positive_scale": -1.0}, ValueError, "positive_scale is -1.0"),
        ({"negative_scale": math.inf}, ValueError, "negative_scale is inf"),
        ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {"features": torch.zeros(4, 5), "labels": torch.zeros(4, dtype=torch.int64), **change}
    with pytest.raises(error, match=message):
        hierarchical_similarity(arguments.pop("features"), arguments.pop("labels"), **arguments)
