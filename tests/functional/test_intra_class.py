"""`intra_class_contrastive` against its definition, an independent library, and its own promises."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss
from torch.utils._python_dispatch import TorchDispatchMode

from icckd import BackendUnavailable, backends
from icckd.functional import intra_class_contrastive
from tests.conftest import CPU_BACKENDS
from tests.problems import assert_as_exact_as_pytorch, exact, problem, with_gradients


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("slots", [0, 30])
@pytest.mark.parametrize("gated", [True, False])
def test_is_the_definition(backend, reduction, normalize, slots, gated):
    anchor, positive, labels, options = problem(slots=slots)
    if not gated:
        del options["gate"]
    temperature = 0.2 if normalize else 3.0
    options |= {"normalize": normalize, "reduction": reduction, "temperature": temperature}
    assert_as_exact_as_pytorch(backend, anchor, positive, labels, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("count", "dim", "classes", "slots"),
    [
        (1, 1, 1, 0),
        (2, 3, 1, 5),
        (37, 17, 5, 0),
        (64, 64, 2, 64),
        (101, 130, 60, 7),
        (257, 31, 1, 100),
        (300, 5, 300, 0),
    ],
)
def test_shapes_and_dtypes(backend, dtype, count, dim, classes, slots):
    anchor, positive, labels, options = problem(count, dim, classes, slots, dtype)
    assert_as_exact_as_pytorch(backend, anchor, positive, labels, **options)


@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.07, 1.0, 50.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_temperatures(backend, temperature, reduction):
    anchor, positive, labels, options = problem(slots=20)
    # Pairs that agree wholly and that oppose each other wholly, as positives and as negatives.
    anchor[1], positive[1], positive[2], labels[1] = -anchor[0], anchor[1], -anchor[2], labels[0]
    anchor[4], labels[4], positive[5] = anchor[3], labels[3], anchor[5]
    options |= {"temperature": temperature, "reduction": reduction}
    assert_as_exact_as_pytorch(backend, anchor, positive, labels, **options)


@pytest.mark.parametrize("temperature", [1e-6, 1e6, 1e9])
def test_extreme_temperatures_stay_finite(backend, temperature):
    anchor, positive, labels, options = problem(slots=20)
    for normalize in (True, False):
        loss, *gradients = with_gradients(
            intra_class_contrastive,
            anchor,
            positive,
            labels,
            temperature,
            normalize=normalize,
            backend=backend,
            **options,
        )
        assert loss.isfinite()
        assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("count", [2, 60])
@pytest.mark.parametrize("temperature", [0.011, 0.025, 0.1])
@pytest.mark.parametrize(
    ("dtype", "weight", "upstream"),
    [
        (torch.float32, 1e4, 1.0),
        (torch.float32, 1e30, 1e-3),
        (torch.float32, 1e-30, 1e3),
        (torch.bfloat16, 1e4, 1e20),
        (torch.float16, 1.0, 65536 / 60),
        (torch.float16, 1e-2, 1.0),
    ],
    ids=str,
)
def test_opposite_rows_under_any_weight_and_loss_scale(backend, dtype, temperature, weight, upstream, count):
    """exp(κ z·z') spans e^(2κ): what is divided by it overflows, unless that is chosen by weights and scale, too."""
    anchor = torch.tensor([[1.0, 0.01], [-1.0, 0.01]]).repeat(count // 2, 1).to(dtype)
    labels = torch.arange(count) // 40
    options = {"gate": torch.full((count,), weight), "reduction": "none", "temperature": temperature}
    options["upstream"] = torch.full((count,), upstream)
    for positive in (anchor, -anchor, anchor[1:2].expand(count, 2)):
        computed = with_gradients(intra_class_contrastive, anchor, positive, labels, backend=backend, **options)
        # Similarities are rounded before they are multiplied by κ, and their errors by weight and upstream after it.
        sizes = [weight, *[weight * upstream / temperature] * 2, count * weight * upstream / temperature**2]
        for x, y, size in zip(computed, exact(anchor, positive, labels, **options), sizes, strict=True):
            rounding = (2 * torch.finfo(x.dtype).eps + 1e-6 / temperature) * size
            torch.testing.assert_close(x.double(), y, rtol=0, atol=rounding)


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_a_float16_mean_under_a_loss_scale(backend, scale):
    anchor = torch.tensor([[1.0, 0.01], [-1.0, 0.01]], dtype=torch.float16)
    positive, labels, upstream = anchor[1:].expand(2, 2), torch.zeros(2, dtype=torch.int64), torch.tensor(scale)
    computed = with_gradients(intra_class_contrastive, anchor, positive, labels, 0.025, upstream, backend=backend)
    for x, y in zip(computed, exact(anchor, positive, labels, upstream, temperature=0.025), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-3, atol=1e-5 * scale * 40)


def test_dissimilar_magnitudes_without_normalisation(backend):
    anchor, positive, labels, options = problem()
    scale = torch.logspace(-3, 3, len(anchor))[:, None]
    options |= {"normalize": False, "temperature": 1.0}
    assert_as_exact_as_pytorch(backend, anchor * scale, positive, labels, **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction):
    anchor, positive, labels, options = problem(12, 3, 3, 5, torch.float64)
    options["gate"] = options["gate"].double()

    def loss(anchor, positive, temperature):
        return intra_class_contrastive(
            anchor, positive, labels, temperature=temperature, reduction=reduction, backend="reference", **options
        )

    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, [anchor.requires_grad_(), positive.requires_grad_(), temperature])


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_is_ntxent_with_pairs_of_the_class(backend, temperature):
    anchor, positive, labels, _ = problem(count=30)
    count = len(labels)
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    same = (labels[pairs[:, 0]] == labels[pairs[:, 1]]) & (pairs[:, 0] != pairs[:, 1]) & (labels[pairs[:, 0]] >= 0)
    first, second = pairs[same].T
    # Pairs index one table: the rows, then their positives. NTXentLoss averages over the positive pairs.
    with_negatives = first.unique()
    indices = (with_negatives, with_negatives + count, first, second)
    expected = NTXentLoss(temperature)(torch.cat([anchor, positive]), indices_tuple=indices) * len(with_negatives)
    loss = intra_class_contrastive(anchor, positive, labels, temperature=temperature, reduction="sum", backend=backend)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_anchors_without_negatives(backend, reduction):
    anchor, positive, _, _ = problem(6)
    for labels, gate in (
        (torch.arange(6), None),
        (torch.zeros(6, dtype=torch.long), torch.zeros(6, dtype=torch.bool)),
        (torch.full((6,), -1), None),
        (torch.tensor([0, -1, 1, -1, 2, -7]), torch.ones(6)),
    ):
        options = {"gate": gate, "reduction": reduction, "backend": backend}
        upstream = torch.ones(6) if reduction == "none" else None
        for x in with_gradients(intra_class_contrastive, anchor, positive, labels, upstream=upstream, **options):
            assert torch.equal(x, torch.zeros_like(x))


def test_no_rows_and_no_memory_slots(backend):
    empty = torch.empty(0, 5)
    labels = torch.empty(0, dtype=torch.long)
    options = {"memory": torch.randn(3, 5), "memory_labels": torch.zeros(3, dtype=torch.long), "backend": backend}
    for x in with_gradients(intra_class_contrastive, empty, empty, labels, **options):
        assert torch.equal(x, torch.zeros_like(x))
    assert intra_class_contrastive(empty, empty, labels, reduction="none", backend=backend).shape == (0,)
    anchor, positive, labels, options = problem()
    without = intra_class_contrastive(anchor, positive, labels, backend=backend, **options)
    options |= {"memory": torch.empty(0, 9), "memory_labels": torch.empty(0, dtype=torch.long)}
    assert torch.equal(intra_class_contrastive(anchor, positive, labels, backend=backend, **options), without)


def test_memory_of_empty_slots_changes_nothing(backend):
    anchor, positive, labels, options = problem()
    plain = with_gradients(intra_class_contrastive, anchor, positive, labels, backend=backend, **options)
    options |= {"memory": torch.full((8, 9), torch.nan), "memory_labels": torch.full((8,), -1)}
    for x, y in zip(
        with_gradients(intra_class_contrastive, anchor, positive, labels, backend=backend, **options),
        plain,
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_ignored_rows_are_not_read(backend):
    anchor, positive, labels, options = problem()
    kept = labels >= 0
    truth = exact(anchor[kept], positive[kept], labels[kept], gate=options["gate"][kept])
    anchor[~kept], positive[~kept] = torch.nan, torch.inf
    loss, d_anchor, d_positive, _ = with_gradients(
        intra_class_contrastive, anchor, positive, labels, backend=backend, **options
    )
    torch.testing.assert_close(loss, truth[0].float())
    for gradient, expected in ((d_anchor, truth[1]), (d_positive, truth[2])):
        torch.testing.assert_close(gradient[kept], expected.float())
        assert not gradient[~kept].any()


def test_zero_rows(backend):
    anchor, positive, labels, options = problem(slots=10)
    anchor[:3], positive[2:5], options["memory"][0] = 0, 0, 0
    options["gate"][:5], labels[:5] = 1, 1
    assert_as_exact_as_pytorch(backend, anchor, positive, labels, **options)
    _, d_anchor, d_positive, _ = with_gradients(
        intra_class_contrastive, anchor, positive, labels, backend=backend, **options
    )
    assert not d_anchor[:3].any()
    assert not d_positive[2:5].any()


def test_boolean_gate_is_a_gate_of_ones(backend):
    anchor, positive, labels, options = problem()
    gate = options["gate"] > 0
    assert torch.equal(
        intra_class_contrastive(anchor, positive, labels, gate=gate, backend=backend),
        intra_class_contrastive(anchor, positive, labels, gate=gate.float(), backend=backend),
    )


def test_rows_that_are_no_anchors_are_negatives(backend):
    anchor, positive, labels, _ = problem()
    gate = torch.rand(len(anchor)) < 0.3
    loss = intra_class_contrastive(anchor, positive, labels, gate=gate, reduction="none", backend=backend)
    everyone = intra_class_contrastive(anchor, positive, labels, reduction="none", backend=backend)
    torch.testing.assert_close(loss, everyone * gate)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_strides(backend, reduction):
    anchor, positive, labels, options = problem(slots=10)
    upstream = torch.rand(len(anchor)) if reduction == "none" else None
    options |= {"reduction": reduction, "upstream": upstream, "backend": backend}
    expected = with_gradients(intra_class_contrastive, anchor, positive, labels, **options)
    scattered = torch.stack([labels, labels], 1)[:, 0]
    options["memory"] = torch.cat([options["memory"]] * 2, 1)[:, :9]
    options["gate"] = torch.stack([options["gate"]] * 2, 1)[:, 1]
    if upstream is not None:
        options["upstream"] = torch.stack([upstream] * 2, 1)[:, 1]
    strided = with_gradients(
        intra_class_contrastive, anchor.T.contiguous().T, positive.flip(0).flip(0), scattered, **options
    )
    for x, y in zip(strided, expected, strict=True):
        assert torch.equal(x, y)


def test_expanded_inputs_and_upstream_gradients(backend):
    row, labels = torch.randn(1, 5), torch.tensor([0, 0, 1, 1, 1, 2])
    positive = torch.randn(6, 5)
    upstream = torch.tensor(0.5).expand(6)
    options = {"reduction": "none", "upstream": upstream}
    assert_as_exact_as_pytorch(backend, row.expand(6, 5), positive, labels, **options)
    assert_as_exact_as_pytorch(backend, positive, row.expand(6, 5), labels, **options)


def test_only_wanted_gradients_come(backend):
    anchor, positive, labels, options = problem(slots=10)
    expected = with_gradients(intra_class_contrastive, anchor, positive, labels, backend=backend, **options)[1:]
    for reduction, wanted in product(("mean", "none"), [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)]):
        inputs = [anchor.clone(), positive.clone(), torch.tensor(0.1)]
        for x, want in zip(inputs, wanted, strict=True):
            x.requires_grad_(bool(want))
        options["memory"].requires_grad_()
        loss = intra_class_contrastive(
            *inputs[:2], labels, temperature=inputs[2], reduction=reduction, backend=backend, **options
        )
        (loss.sum() / options["gate"][labels >= 0].sum() if reduction == "none" else loss).backward()
        for x, want, gradient in zip(inputs, wanted, expected, strict=True):
            if want:
                torch.testing.assert_close(x.grad, gradient)
            else:
                assert x.grad is None
        assert options["memory"].grad is None
    with torch.no_grad():
        assert not intra_class_contrastive(anchor.requires_grad_(), positive, labels, backend=backend).requires_grad


def test_autocast_changes_nothing(backend):
    anchor, positive, labels, options = problem(slots=10)
    for reduction in ("mean", "none"):
        options |= {"reduction": reduction, "upstream": torch.ones(40) if reduction == "none" else None}
        outside = with_gradients(intra_class_contrastive, anchor, positive, labels, backend=backend, **options)
        with torch.autocast("cpu", torch.bfloat16):
            inside = with_gradients(intra_class_contrastive, anchor, positive, labels, backend=backend, **options)
        for x, y in zip(inside, outside, strict=True):
            assert torch.equal(x, y)


def test_memory_may_have_another_dtype_and_be_overwritten_before_backward(backend):
    for dtype, memory_dtype in ((torch.bfloat16, torch.float32), (torch.float16, torch.float64)):
        anchor, positive, labels, options = problem(slots=10, dtype=dtype)
        truth = exact(anchor, positive, labels, **options)
        options["memory"] = options["memory"].to(memory_dtype)
        anchor.requires_grad_()
        loss = intra_class_contrastive(anchor, positive, labels, backend=backend, **options)
        options["memory"].zero_()
        loss.backward()
        torch.testing.assert_close(loss.detach(), truth[0].float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(anchor.grad.double(), truth[1], rtol=1e-2, atol=1e-3)


def test_a_small_float16_gradient_survives_under_a_loss_scale(backend):
    anchor, positive, labels, _ = problem(count=300, dtype=torch.float16)
    scale = torch.tensor(2.0**16)
    truth = exact(anchor * 16, positive, labels, upstream=scale)
    _, d_anchor, d_positive, _ = with_gradients(
        intra_class_contrastive, anchor * 16, positive, labels, upstream=scale, backend=backend
    )
    # Matrix units multiply coefficients that are rounded to float16.
    least = 5e-4 if backend == "triton" else 1e-4
    for x, y in ((d_anchor, truth[1]), (d_positive, truth[2])):
        torch.testing.assert_close(x.double(), y, rtol=2e-3, atol=least * y.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_every_time(backend, dtype):
    # What is interpreted takes a while.
    count, repetitions = (60, 3) if backend == "triton" else (500, 20)
    anchor, positive, labels, options = problem(count, 40, 7, count // 5, dtype)
    for reduction in ("mean", "none"):
        upstream = torch.rand(count) if reduction == "none" else None
        options |= {"reduction": reduction, "upstream": upstream, "backend": backend}
        first = with_gradients(intra_class_contrastive, anchor, positive, labels, **options)
        for _ in range(repetitions):
            again = with_gradients(intra_class_contrastive, anchor, positive, labels, **options)
            assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest tensor holds that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor) and x.untyped_storage():
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize("classes", [1, 50, 20_000])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_tensor_is_quadratic(classes, reduction):
    count, dim = 20_000, 4
    anchor, positive, labels, options = problem(count, dim, classes, 100)
    # Few anchors, or one class of all rows would take a while; they face all rows.
    options["gate"][:19_000] = 0
    upstream = torch.ones(count) if reduction == "none" else None
    with LargestTensor() as largest:
        with_gradients(
            intra_class_contrastive,
            anchor,
            positive,
            labels,
            reduction=reduction,
            upstream=upstream,
            backend="reference",
            **options,
        )
    assert largest.numbers <= 64 * count


def test_num_classes(backend):
    anchor, positive, labels, options = problem(slots=10)
    expected = with_gradients(intra_class_contrastive, anchor, positive, labels, backend=backend, **options)
    options["num_classes"] = 5
    bounded = with_gradients(intra_class_contrastive, anchor, positive, labels, backend=backend, **options)
    for x, y in zip(bounded, expected, strict=True):
        torch.testing.assert_close(x, y)
    options["num_classes"] = 4
    with pytest.raises(ValueError, match="memory_labels reach 4; they should be below num_classes = 4"):
        intra_class_contrastive(anchor, positive, labels, backend=backend, **options)


labelled_rows = st.lists(st.integers(-1, 4), min_size=1, max_size=25)


@given(data=st.data(), labels=labelled_rows)
def test_order_of_rows_does_not_matter(backend, data, labels):
    labels = torch.tensor(labels)
    anchor, positive, _, options = problem(len(labels))
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    expected = intra_class_contrastive(anchor, positive, labels, reduction="none", backend=backend, **options)
    permuted = intra_class_contrastive(
        anchor[order], positive[order], labels[order], gate=options["gate"][order], reduction="none", backend=backend
    )
    torch.testing.assert_close(permuted, expected[order])


# Two or more calls for each example: with Triton's interpreter that is a sweep of its own.
many_calls = pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=[pytest.mark.slow] * (name == "triton")) for name in CPU_BACKENDS]
)


@many_calls
@given(
    labels=labelled_rows,
    names=st.lists(st.integers(0, 2**63 - 1), min_size=5, max_size=5, unique=True),
)
def test_names_of_classes_do_not_matter(backend, labels, names):
    labels = torch.tensor(labels)
    anchor, positive, _, options = problem(len(labels), slots=10)
    names = torch.tensor([*names, -(2**63)])
    expected = with_gradients(intra_class_contrastive, anchor, positive, labels, backend=backend, **options)
    options["memory_labels"] = names[options["memory_labels"]]
    renamed = with_gradients(intra_class_contrastive, anchor, positive, names[labels], backend=backend, **options)
    for x, y in zip(renamed, expected, strict=True):
        torch.testing.assert_close(x, y)


@many_calls
@given(labels=labelled_rows)
def test_classes_do_not_see_each_other(backend, labels):
    labels = torch.tensor(labels)
    anchor, positive, _, options = problem(len(labels))
    options |= {"reduction": "sum", "backend": backend}
    together = intra_class_contrastive(anchor, positive, labels, **options)
    apart = sum(
        intra_class_contrastive(anchor, positive, torch.where(labels == label, labels, -1), **options)
        for label in labels.unique()
        if label >= 0
    )
    torch.testing.assert_close(together, torch.as_tensor(apart, dtype=torch.float32))


ANCHOR, LABELS = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"anchor": ANCHOR.tolist()}, TypeError, "anchor is a list; it should be a torch.Tensor"),
        ({"anchor": ANCHOR.long()}, TypeError, "anchor has dtype torch.int64"),
        ({"anchor": ANCHOR[0]}, ValueError, r"anchor has shape \(3,\); it should be \(N, D\)"),
        ({"positive": ANCHOR[:3]}, ValueError, r"positive has shape \(3, 3\); it should be \(4, 3\)"),
        ({"positive": ANCHOR.double()}, TypeError, "positive has dtype torch.float64; it should be torch.float32"),
        ({"positive": ANCHOR.to("meta")}, ValueError, "positive is on meta; it should be on cpu, as anchor is"),
        ({"labels": LABELS.float()}, TypeError, "labels has dtype torch.float32; it should be an integer type"),
        ({"labels": LABELS[:2]}, ValueError, r"labels has shape \(2,\); it should be \(4,\)"),
        ({"gate": torch.ones(4, 1)}, ValueError, r"gate has shape \(4, 1\); it should be \(4,\)"),
        ({"gate": LABELS}, TypeError, "gate has dtype torch.int64; it should be torch.bool or a float type"),
        ({"gate": torch.tensor([1, 1, -1.0, 1])}, ValueError, "gate holds a negative or non-finite value"),
        ({"gate": torch.tensor([1, 1, torch.nan, 1])}, ValueError, "gate holds a negative or non-finite value"),
        ({"memory": ANCHOR}, ValueError, "memory_labels is None, but memory is given"),
        ({"memory_labels": LABELS}, ValueError, "memory is None, but memory_labels is given"),
        ({"memory": ANCHOR[:, :2], "memory_labels": LABELS}, ValueError, r"memory has shape \(4, 2\).* \(N, 3\)"),
        ({"memory": ANCHOR, "memory_labels": LABELS[1:]}, ValueError, r"memory_labels has shape \(3,\)"),
        ({"temperature": 0.0}, ValueError, "temperature is 0.0; it should be a finite number above 0"),
        ({"temperature": float("nan")}, ValueError, "temperature is nan; it should be a finite number above 0"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature is -1.0; it should be a finite number above 0"),
        ({"temperature": torch.ones(1)}, ValueError, r"temperature has shape \(1,\); it should be a float or a 0-dim"),
        ({"temperature": "warm"}, TypeError, "temperature is 'warm'; it should be a number"),
        ({"reduction": "average"}, ValueError, "reduction is 'average'; it should be 'mean', 'sum' or 'none'"),
        ({"num_classes": 0}, ValueError, "num_classes is 0; it should be 1 or more"),
        ({"num_classes": 1}, ValueError, "labels reach 1; they should be below num_classes = 1"),
        ({"backend": "gpu"}, ValueError, "backend is 'gpu'; it should be 'auto' or one of"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    arguments = {"anchor": ANCHOR, "positive": ANCHOR, "labels": LABELS} | change
    with pytest.raises(error, match=message):
        intra_class_contrastive(**arguments)


def test_a_backend_of_the_gpu_refuses_tensors_of_the_cpu():
    with pytest.raises(BackendUnavailable, match="backend 'cuda' cannot run here"):
        intra_class_contrastive(ANCHOR, ANCHOR, LABELS, backend="cuda")


def test_double_precision_is_for_the_reference_backend():
    if backends.why_unavailable("cpu") is None:
        with pytest.raises(BackendUnavailable, match=r"torch\.float64"):
            intra_class_contrastive(ANCHOR.double(), ANCHOR.double(), LABELS, backend="cpu")
    loss = intra_class_contrastive(ANCHOR.double(), ANCHOR.double(), LABELS)
    assert loss.dtype == torch.float64
