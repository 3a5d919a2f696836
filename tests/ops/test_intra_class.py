"""The intra-class operators: their registration, what the compiler and autograd are promised."""

import itertools

import pytest
import torch

from icckd import backends
from icckd.backends.problem import IntraClassProblem, Needs
from icckd.functional import intra_class_contrastive
from icckd.ops import intra_class as ops


def arguments(
    count=13, slots=0, dtype=torch.float32, requires_grad=False, mean=False, normalize=True, num_classes=None
):
    """The operators' common arguments."""
    generator = torch.Generator().manual_seed(count)
    anchor, positive = (torch.randn(count, 5, generator=generator).to(dtype) for _ in range(2))
    labels = torch.randint(-1, 3, (count,), generator=generator)
    weight = torch.rand(count, generator=generator) * (labels >= 0) * (torch.rand(count, generator=generator) < 0.8)
    memory = torch.randn(slots, 5, generator=generator).to(dtype) if slots else None
    memory_labels = torch.randint(-1, 3, (slots,), generator=generator) if slots else None
    temperature = torch.tensor(0.3)
    for x in (anchor, positive, temperature):
        x.requires_grad_(requires_grad)
    return anchor, positive, labels, weight, memory, memory_labels, temperature, mean, normalize, num_classes


@pytest.mark.parametrize(("slots", "dtype"), [(0, torch.float32), (4, torch.bfloat16)])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(backend, slots, requires_grad, dtype):
    inputs = arguments(slots=slots, dtype=dtype, requires_grad=requires_grad, num_classes=3 if slots else None)
    torch.library.opcheck(ops.intra_class_rows, (*inputs, backend))
    torch.library.opcheck(ops.intra_class_sum, (*inputs, True, True, True, backend))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_the_mean_is_over_labelled_rows(backend, weighted, num_classes):
    """As if weights were given that are 0 in ignored rows and divided by their sum; 0 where that is 0."""
    anchor, positive, labels, weight, *others = arguments(slots=4, num_classes=num_classes)
    weight = weight + (labels < 0) if weighted else None
    used = (labels >= 0).float() * (1 if weight is None else weight)
    mean, explicit = list(others), used / used.sum()
    mean[3] = True
    expected = ops.intra_class_rows(anchor, positive, labels, explicit, *others, backend)
    torch.testing.assert_close(
        ops.intra_class_rows(anchor, positive, labels, weight, *mean, backend), expected, rtol=1e-5, atol=1e-6
    )
    sums = (
        ops.intra_class_sum(anchor, positive, labels, w, *o, True, True, True, backend)
        for w, o in ((weight, mean), (explicit, others))
    )
    torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-6)
    torch.library.opcheck(ops.intra_class_sum, (anchor, positive, labels, weight, *mean, True, True, True, backend))
    for none, w in ((torch.full_like(labels, -1), weight), (labels, 0 * used)):
        loss, *gradients = ops.intra_class_sum(anchor, positive, none, w, *mean, True, True, True, backend)
        assert not any(x.any() for x in (loss, *gradients))


@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=3)))
def test_gradients_that_are_not_needed_are_empty(backend, needs):
    inputs = arguments(slots=4)
    rows, lse = ops.intra_class_rows(*inputs, backend)
    backward = (torch.ones_like(rows), lse, *inputs, *needs, backend)
    torch.library.opcheck(ops.intra_class_rows_backward, backward)
    torch.library.opcheck(ops.intra_class_sum, (*inputs, *needs, backend))
    loss, *together = ops.intra_class_sum(*inputs, *needs, backend)
    torch.testing.assert_close(loss, rows.sum())
    for one, other, need, x in zip(
        together, ops.intra_class_rows_backward(*backward), needs, (inputs[0], inputs[1], inputs[6]), strict=True
    ):
        assert one.shape == other.shape == (x.shape if need else (0,))
        torch.testing.assert_close(one, other)


def test_lse(backend):
    anchor, positive, labels, weight, memory, memory_labels, temperature, *_ = inputs = arguments(slots=4)
    _, lse = ops.intra_class_rows(*inputs, backend)
    z, p, m = (torch.nn.functional.normalize(x) for x in (anchor, positive, memory))
    for i, label in enumerate(labels):
        own = torch.arange(len(labels)) == i
        similarities = torch.cat(
            [z[i] @ p[i, :, None], z[(labels == label) & ~own] @ z[i], m[memory_labels == label] @ z[i]]
        )
        expected = (similarities / temperature).logsumexp(0) if weight[i] > 0 else torch.tensor(0.0)
        torch.testing.assert_close(lse[i], expected)


@pytest.mark.parametrize(("name", "first"), [("rows", 0), ("rows_backward", 2), ("sum", 0)])
def test_the_record_names_the_operators_arguments_in_their_order(name, first):
    schema = getattr(torch.ops.icckd, f"intra_class_{name}").default._schema
    needs = [] if name == "rows" else [f"need_{field}" for field in Needs._fields]
    assert [x.name for x in schema.arguments[first:]] == [*IntraClassProblem._fields, *needs, "backend"]


class Recorder:
    """A backend that notes which of its functions are called."""

    def __init__(self, module):
        self.module, self.called = module, []

    def __getattr__(self, name):
        self.called.append(name)
        return getattr(self.module, name)


def test_no_operator_runs_that_is_not_wanted(monkeypatch):
    recorder = Recorder(backends.module("reference"))
    monkeypatch.setattr(backends, "module", lambda backend: recorder)
    anchor, positive, labels, *_ = arguments(requires_grad=True)

    def called(reduction):
        recorder.called.clear()
        loss = intra_class_contrastive(anchor, positive, labels, reduction=reduction, backend="reference").sum()
        if loss.requires_grad:
            loss.backward()
        return recorder.called

    assert called("mean") == called("sum") == ["intra_class_sum", "scale_gradients"]
    assert called("none") == ["intra_class_rows", "intra_class_rows_backward"]
    with torch.no_grad():
        assert called("mean") == called("none") == ["intra_class_rows"]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_are_refused(backend, reduction):
    anchor, positive, labels, *_ = arguments(requires_grad=True)
    temperature = torch.tensor(0.3, requires_grad=True)
    for wanted, other in itertools.permutations([anchor, positive, temperature], 2):
        loss = intra_class_contrastive(
            anchor, positive, labels, temperature=temperature, reduction=reduction, backend=backend
        )
        (gradient,) = torch.autograd.grad(loss.sum(), wanted, create_graph=True)
        with pytest.raises(RuntimeError, match=r"once only; icckd\.reference"):
            torch.autograd.grad(gradient.sum(), other)


def test_gradients_of_a_kept_graph_are_independent(backend):
    anchor, positive, labels, *_ = arguments(requires_grad=True)
    loss = intra_class_contrastive(anchor, positive, labels, backend=backend)
    (first,) = torch.autograd.grad(loss, anchor, retain_graph=True)
    expected = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(loss, anchor, retain_graph=True)
    assert torch.equal(second, expected)
    (tripled,) = torch.autograd.grad(3 * loss, anchor)
    assert torch.equal(tripled, 3 * expected)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_whole(backend, reduction, dynamic):
    def step(anchor, positive, labels, gate, memory, memory_labels, temperature):
        return 3 * intra_class_contrastive(
            2 * anchor,
            positive,
            labels,
            gate=gate > 0,
            memory=memory,
            memory_labels=memory_labels,
            temperature=temperature,
            reduction=reduction,
            num_classes=3,
            backend=backend,
        )

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for count in (13, 21) if dynamic else (13,):
        *inputs, _, _, _ = arguments(count, slots=4, requires_grad=True)
        wanted = (inputs[0], inputs[1], inputs[6])
        expected = step(*inputs)
        result = compiled(*inputs)
        torch.testing.assert_close(result, expected)
        for x, y in zip(
            torch.autograd.grad(result.sum(), wanted), torch.autograd.grad(expected.sum(), wanted), strict=True
        ):
            torch.testing.assert_close(x, y)


def test_compiled_code_refuses_wrong_values(backend):
    anchor, positive, labels, *_ = arguments()
    wrong = {
        "labels reach 2; they should be below num_classes = 2": {"num_classes": 2},
        "gate holds a negative or non-finite value": {"gate": torch.full((13,), torch.inf)},
    }
    for message, options in wrong.items():
        torch._dynamo.reset()
        compiled = torch.compile(intra_class_contrastive, fullgraph=True, backend="aot_eager")
        with pytest.raises(ValueError, match=message):
            compiled(anchor, positive, labels, backend=backend, **options)


def test_a_float_temperature_compiles(backend):
    anchor, positive, labels, *_ = arguments()
    torch._dynamo.reset()
    compiled = torch.compile(intra_class_contrastive, fullgraph=True, backend="aot_eager")
    for temperature in (0.1, 0.2, 0.3):
        torch.testing.assert_close(
            compiled(anchor, positive, labels, temperature=temperature, backend=backend),
            intra_class_contrastive(anchor, positive, labels, temperature=temperature, backend=backend),
        )
