"""The public functions within torch.func and forward mode, without values, with narrow labels and inference tensors."""

import contextlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from icckd import IntraClassContrastiveLoss, TeacherLoss, functional, reference
from icckd.backends import why_unavailable

NAMES = ["reference", *([] if why_unavailable("cpu") else ["cpu"])]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LABELS = torch.tensor([0, 0, 0, 1, 1, -100, 4])
GATE = torch.tensor([1, 0.5, 0, 1, 2, 1, 1])
GENERATOR = torch.Generator().manual_seed(0)
X, Y, ALONG = torch.randn(3, 7, 5, generator=GENERATOR, dtype=torch.float64)
MEMORY, MEMORY_LABELS = torch.randn(6, 5, generator=GENERATOR, dtype=torch.float64), torch.tensor([0, 1, 1, -1, 4, 2])


def cross_entropy(m, x, reduction, **options):
    return m.cross_entropy_with_margin(x, LABELS, label_smoothing=0.1, reduction=reduction, **options)[0]


def kd_kl(m, x, reduction, **options):
    reduction = {"mean": "batchmean"}.get(reduction, reduction)
    return m.kd_kl(x, Y.to(x.dtype), standardize=True, temperature=2.0, reduction=reduction, **options)


def intra_class_anchor(m, x, reduction, **options):
    return m.intra_class_contrastive(x, Y.to(x.dtype), LABELS, reduction=reduction, temperature=0.5, **options)


def intra_class_positive(m, x, reduction, **options):
    options |= {"memory": MEMORY.to(x.dtype), "memory_labels": MEMORY_LABELS, "gate": GATE, "num_classes": 5}
    return m.intra_class_contrastive(Y.to(x.dtype), x, LABELS, reduction=reduction, temperature=0.5, **options)


def rkd_distance(m, x, reduction, **options):
    return m.rkd_distance(x, Y.to(x.dtype), **options)


def rkd_angle(m, x, reduction, **options):
    return m.rkd_angle(x, Y.to(x.dtype), **options)


SUMS = [
    *((loss, r) for loss in (cross_entropy, kd_kl, intra_class_anchor, intra_class_positive) for r in ("mean", "sum")),
    *((loss, "mean") for loss in (rkd_distance, rkd_angle)),
]
# Of rows that do not depend on each other.
ROWS = [(cross_entropy, "none"), (kd_kl, "none")]
PAIRS = [(intra_class_anchor, "none"), (intra_class_positive, "none")]


def both(loss, reduction, backend, dtype=torch.float32):
    """The loss as a function of x in `dtype`, by the backend, and by the definition in float64."""
    x = X.to(dtype)
    return (
        lambda z: loss(functional, z, reduction, backend=backend),
        lambda z: loss(reference, z.double(), reduction),
        x,
    )


def close(actual, expected, dtype=torch.float32):
    # What comes back in x's dtype is rounded to it, and so is the teacher's side of the definition.
    rtol = {torch.bfloat16: 2e-2, torch.float16: 3e-3}.get(dtype, 1e-4)
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=rtol * float(expected.abs().max()) + 1e-7)


def dual_tangent(f, x, v):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(("loss", "reduction"), SUMS + ROWS + PAIRS)
def test_reverse_mode_and_vmap(backend, loss, reduction):
    f, definition, x = both(loss, reduction, backend)
    total, total_definition = (lambda z: f(z).sum()), (lambda z: definition(z).sum())
    expected = grad(total_definition)(x.double())
    close(grad(total)(x), expected)
    close(vjp(total, x)[1](torch.tensor(2.0))[0], 2 * expected)
    close(jacrev(f)(x), jacrev(definition)(x.double()))
    batch = torch.stack([x, -x], dim=1)
    values = torch.stack([definition(x.double()), definition(-x.double())])
    gradients = torch.stack([expected, grad(total_definition)(-x.double())])
    close(vmap(f, in_dims=1)(batch), values)
    close(vmap(grad(total), in_dims=1)(batch), gradients)
    close(grad(lambda z: vmap(f, in_dims=1)(z).sum())(batch), gradients.transpose(0, 1))
    close(torch.autograd.grad(vmap(f, 1)(batch.requires_grad_()).sum(), batch)[0], gradients.transpose(0, 1))


@pytest.mark.filterwarnings("ignore")  # linearize's own
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(("loss", "reduction"), SUMS + ROWS)
def test_forward_mode(backend, loss, reduction, dtype):
    f, definition, x = both(loss, reduction, backend, dtype)
    v = ALONG.to(dtype)
    value, expected = jvp(definition, (x.double(),), (v.double(),))
    actual, tangent = jvp(f, (x,), (v,))
    close(actual, value, dtype)
    close(tangent, expected, dtype)
    assert tangent.dtype == actual.dtype == torch.float32
    close(dual_tangent(f, x, v), expected, dtype)
    close(linearize(f, x)[1](v), expected, dtype)
    close(dual_tangent(f, x.clone().requires_grad_(), v).detach(), expected, dtype)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize(("loss", "reduction"), SUMS + ROWS)
def test_forward_mode_that_is_mapped(backend, loss, reduction):
    f, definition, x = both(loss, reduction, backend)
    close(jacfwd(f)(x), jacrev(definition)(x.double()))
    batch, along = torch.stack([x, -x]), torch.stack([ALONG.float(), x])
    pairs = list(zip(batch.double(), along.double(), strict=True))
    expected = torch.stack([jvp(definition, (z,), (v,))[1] for z, v in pairs])
    close(vmap(lambda z, v: jvp(f, (z,), (v,))[1])(batch, along), expected)
    close(jvp(vmap(f), (batch,), (along,))[1], expected)


@pytest.mark.parametrize("loss", [intra_class_anchor, intra_class_positive])
def test_rows_of_pairs_refuse_forward_mode(loss):
    f, _, x = both(loss, "none", "auto")
    for attempt in (lambda: jvp(f, (x,), (x,)), lambda: dual_tangent(f, x, x), lambda: jacfwd(f)(x)):
        with pytest.raises(RuntimeError, match="icckd's losses of pairs have no derivative in forward mode with"):
            attempt()


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_temperature_has_a_tangent(backend, dtype):
    inputs = [*(z.to(dtype) for z in (X, Y)), torch.tensor(0.3)]
    tangents = [ALONG.to(dtype), X.to(dtype), torch.tensor(0.7)]

    def loss(m, **options):
        return lambda a, p, t: m.intra_class_contrastive(a, p, LABELS, temperature=t, **options)

    f, definition = loss(functional, backend=backend), loss(reference)
    exact = [z.double() for z in inputs]
    expected = jvp(definition, tuple(exact), tuple(z.double() for z in tangents))[1]
    close(jvp(f, tuple(inputs), tuple(tangents))[1], expected)
    for alone in range(3):
        some = [z.double() if i == alone else torch.zeros_like(z).double() for i, z in enumerate(tangents)]
        expected = jvp(definition, tuple(exact), tuple(some))[1]
        actual = dual_tangent(lambda z, i=alone: f(*inputs[:i], z, *inputs[i + 1 :]), inputs[alone], tangents[alone])
        close(actual, expected)


def test_a_small_float16_tangent_survives():
    x, y, v = (torch.randn(6000, 50, generator=torch.Generator().manual_seed(i)).half() / 2 for i in range(3))
    expected = jvp(lambda z: reference.kd_kl(z, y.double()), (x.double(),), (v.double(),))[1]
    torch.testing.assert_close(
        jvp(lambda z: functional.kd_kl(z, y), (x,), (v,))[1].double(), expected, rtol=1e-4, atol=0
    )


def second_derivatives(f, x):
    """Every way to ask for a second derivative of f."""

    def reversed_over(derivative, **options):
        z = x.clone().requires_grad_()
        return torch.autograd.grad(derivative(z).square().sum(), z, **options)

    def forward_over_backward(create_graph):
        with forward_ad.dual_level():
            z = forward_ad.make_dual(x.clone().requires_grad_(), x)
            return forward_ad.unpack_dual(torch.autograd.grad(f(z), z, create_graph=create_graph)[0]).tangent

    def backward_through_a_tangent(z):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(z, x))).tangent

    def along(z):
        return jvp(f, (z,), (x,))[1]

    return [
        lambda: hessian(f)(x),
        lambda: jacrev(jacfwd(f))(x),
        lambda: jacfwd(jacfwd(f))(x),
        lambda: grad(lambda z: grad(f)(z).square().sum())(x),
        lambda: jvp(grad(f), (x,), (x,)),
        lambda: grad(along)(x),
        lambda: jvp(along, (x,), (x,)),
        lambda: vmap(hessian(f))(x[None]),
        lambda: reversed_over(grad(f)),
        lambda: reversed_over(along),
        lambda: reversed_over(backward_through_a_tangent),
        lambda: reversed_over(lambda z: torch.autograd.grad(f(z), z, create_graph=True)[0]),
        lambda: forward_over_backward(False),
        lambda: forward_over_backward(True),
        lambda: torch.autograd.functional.hvp(f, x, x),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("loss", "reduction"), SUMS + ROWS)
def test_second_derivatives_are_refused_in_every_mode(loss, reduction, dtype):
    f, _, x = both(loss, reduction, NAMES[-1], dtype)
    for attempt in second_derivatives(lambda z: f(z).sum(), x):
        with pytest.raises(RuntimeError, match=r"^icckd's losses can be differentiated once only"):
            attempt()


@pytest.mark.parametrize(("loss", "reduction"), SUMS)
def test_a_gradient_is_linear_in_the_upstream_gradient(loss, reduction):
    """PyTorch's own way to forward mode by two backward passes."""
    f, definition, x = both(loss, reduction, NAMES[-1])
    expected = jvp(definition, (x.double(),), (ALONG,))[1]
    close(torch.autograd.functional.jvp(f, x, ALONG.float())[1], expected)


@pytest.mark.parametrize("loss", [loss for loss, reduction in SUMS if reduction == "mean"])
def test_the_definition_has_second_derivatives_in_every_mode(loss):
    x = X.requires_grad_(False)
    f = lambda z: loss(reference, z, "mean")  # noqa: E731
    torch.testing.assert_close(hessian(f)(x), torch.autograd.functional.hessian(f, x))
    torch.testing.assert_close(vmap(f)(x[None])[0], f(x))


def test_functionalize_serves_alone():
    f, definition, x = both(kd_kl, "mean", "auto")
    close(functionalize(f)(x), definition(x.double()))
    with pytest.raises(RuntimeError, match=r"take no other transform of torch[.]func together with functionalize"):
        functionalize(grad(f))(x)


def test_per_sample_labels_and_gates(generator):
    """vmap over what is no float: labels, gates and temperatures of each sample."""
    anchor, positive = torch.randn(2, 3, 6, 4, generator=generator)
    labels, gate = torch.randint(0, 3, (3, 6), generator=generator), torch.rand(3, 6, generator=generator)
    temperatures = torch.tensor([0.1, 0.2, 0.5])

    def loss(m, a, p, y, g, t):
        return m.intra_class_contrastive(a, p, y, gate=g, temperature=t, num_classes=3)

    everything = anchor, positive, labels, gate, temperatures
    expected = torch.stack([loss(reference, *sample) for sample in zip(*everything, strict=True)])
    torch.testing.assert_close(vmap(lambda *z: loss(functional, *z))(*everything), expected)
    logits = torch.randn(3, 6, 3, generator=generator)
    for actual, wanted in zip(
        vmap(functional.cross_entropy_with_margin)(logits, labels),
        vmap(reference.cross_entropy_with_margin)(logits, labels),
        strict=True,
    ):
        torch.testing.assert_close(actual, wanted)
    torch.testing.assert_close(
        vmap(functional.classification_margin)(logits, labels), vmap(reference.classification_margin)(logits, labels)
    )
    labels[1, 2] = 3
    with pytest.raises(ValueError, match="labels reach 3; they should be below num_classes = 3"):
        vmap(lambda *z: loss(functional, *z))(*everything)
    with pytest.raises(ValueError, match="labels holds 3"):
        vmap(functional.cross_entropy_with_margin)(logits, labels)
    with pytest.raises(RuntimeError, match=r"cannot be mapped by torch[.]vmap over a dimension of size 0"):
        vmap(lambda *z: loss(functional, *z))(*(z[:0] for z in everything))


# --- modules ----------------------------------------------------------------------------------------------------------


def teacher_inputs(count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    logits = torch.randn(count, 5, generator=generator) + 3 * torch.nn.functional.one_hot(labels, 5)
    return logits, labels, *torch.randn(2, count, 8, generator=generator)


def teacher_definition(logits, labels, features, positive):
    cross_entropy, margin = reference.cross_entropy_with_margin(logits, labels)
    intra_class = reference.intra_class_contrastive(features, positive, labels, gate=margin > 0.2)
    return cross_entropy + 0.5 * intra_class


def teacher_loss(*inputs):
    return TeacherLoss(weight=0.5)(*inputs).total


def test_a_teacher_loss_has_a_derivative_in_both_modes():
    logits, labels, features, positive = teacher_inputs()

    def of(loss):
        return lambda z, a, p: loss(z, labels, a, p)

    inputs = logits, features, positive
    for transform in (
        lambda f: grad(f, argnums=(0, 1, 2))(*inputs),
        lambda f: [jvp(f, inputs, inputs)[1]],
    ):
        for actual, expected in zip(transform(of(teacher_loss)), transform(of(teacher_definition)), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, check_dtype=False)
    assert jvp(of(teacher_loss), inputs, inputs)[1].dtype == torch.float32


def test_a_learned_temperature_is_differentiated_by_torch_func():
    _, labels, features, positive = teacher_inputs()
    module = IntraClassContrastiveLoss(torch.nn.Parameter(torch.tensor(0.3)))
    parameters = dict(module.named_parameters())
    (expected,) = torch.autograd.grad(module(features, positive, labels), module.temperature)
    along = {"temperature": torch.tensor(2.0)}

    def loss(values):
        return functional_call(module, values, (features, positive, labels))

    torch.testing.assert_close(grad(loss)(parameters)["temperature"].detach(), expected)
    torch.testing.assert_close(jvp(loss, (parameters,), (along,))[1].detach(), 2 * expected)


# --- without values ---------------------------------------------------------------------------------------------------


def every_call(device):
    """Every function's result, by name, of tensors made on the device."""
    on = {"device": device}
    logits, features, positive = torch.randn(6, 5, **on), torch.randn(6, 8, **on), torch.randn(6, 8, **on)
    labels, gate = torch.zeros(6, dtype=torch.uint8, **on), torch.rand(6, **on)
    memory = {"memory": torch.randn(9, 8, **on), "memory_labels": torch.zeros(9, dtype=torch.int32, **on)}
    options = memory | {"gate": gate, "temperature": torch.tensor(0.1, **on), "num_classes": 5}
    teacher = TeacherLoss()(logits, labels, features, positive)
    return {
        "margin": functional.classification_margin(logits, labels),
        "cross_entropy": functional.cross_entropy_with_margin(logits, labels)[0],
        "cross_entropy_rows": functional.cross_entropy_with_margin(logits, labels, reduction="none")[0],
        "kd_kl": functional.kd_kl(logits, logits.half()),
        "kd_kl_rows": functional.kd_kl(logits, logits.half(), reduction="none"),
        "rkd_distance": functional.rkd_distance(features, logits),
        "rkd_angle": functional.rkd_angle(features, logits),
        "intra_class": functional.intra_class_contrastive(features, positive, labels, **options),
        "intra_class_rows": functional.intra_class_contrastive(features, positive, labels, reduction="none"),
        "module": IntraClassContrastiveLoss(torch.tensor(0.2, **on))(features, positive, labels, gate > 0.5),
        **teacher._asdict(),
    }


@pytest.mark.parametrize(("mode", "device"), [("fake", "cpu"), ("fake", "cuda"), ("", "meta")])
def test_shapes_without_values(mode, device):
    with FakeTensorMode() if mode else contextlib.nullcontext():
        results = every_call(device)
    for name, result in results.items():
        assert result.shape == ((6,) if name.endswith(("rows", "margin")) and name != "mean_margin" else ()), name
        assert (result.dtype, result.device.type) == (torch.float32, device), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_gradients_without_values(dtype):
    with FakeTensorMode():
        logits, features, positive = (torch.randn(6, n, dtype=dtype, requires_grad=True) for n in (5, 8, 8))
        total = TeacherLoss()(logits, torch.zeros(6, dtype=torch.int8), features, positive).total
        gradients = torch.autograd.grad(total, (logits, features, positive))
        assert grad(lambda z: functional.kd_kl(z, logits))(logits.detach()).shape == (6, 5)
    assert [(g.shape, g.dtype) for g in gradients] == [((6, n), dtype) for n in (5, 8, 8)]


def distillation_losses(module):
    """Every loss of a student, here of `logits` and `features`, whose teachers are other columns."""

    def losses(logits, labels, features, positive):
        teacher = positive[:, : logits.shape[1]]
        softened = sum(module.kd_kl(logits, teacher, temperature=t) for t in (4.0, 64.0))
        return softened + module.rkd_distance(features, positive) + module.rkd_angle(positive, features)

    return losses


def gradients_of(loss):
    def gradients(logits, labels, features, positive):
        inputs = [z.detach().requires_grad_() for z in (logits, features, positive)]
        return torch.autograd.grad(loss(inputs[0], labels, *inputs[1:]), inputs)

    return gradients


RECORDED = {
    "loss": (teacher_loss, teacher_definition),
    "gradients": (gradients_of(teacher_loss), gradients_of(teacher_definition)),
    "torch.func": (grad(teacher_loss, argnums=(0, 2, 3)), gradients_of(teacher_definition)),
    "distillation": (gradients_of(distillation_losses(functional)), gradients_of(distillation_losses(reference))),
}


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_graph_computes_other_data(name, mode):
    function, definition = RECORDED[name]
    graph = make_fx(function, tracing_mode=mode)(*teacher_inputs())
    for count in (7, 11) if mode == "symbolic" else (7,):
        inputs = teacher_inputs(count, seed=count)
        torch.testing.assert_close(graph(*inputs), definition(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_a_recorded_temperature_and_gate_stay_variable(mode):
    def loss(m):
        return lambda t, g, y, a, p: m.intra_class_contrastive(a, p, y, temperature=t, gate=g, num_classes=5)

    _, *rows = teacher_inputs()
    graph = make_fx(loss(functional), tracing_mode=mode)(torch.tensor(0.3), torch.ones(7), *rows)
    _, *rows = teacher_inputs(seed=1)
    inputs = torch.tensor(0.7), torch.arange(7) / 7, *rows
    torch.testing.assert_close(graph(*inputs), loss(reference)(*inputs))


@pytest.mark.parametrize("strict", [False, True])
def test_exports(strict):
    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return teacher_loss(*inputs)

    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(
        Module(), teacher_inputs(), strict=strict, dynamic_shapes={"inputs": ({0: rows},) * 4}
    )
    inputs = teacher_inputs(11)
    torch.testing.assert_close(exported.module()(*inputs), teacher_definition(*inputs))


@pytest.mark.filterwarnings("ignore")
def test_jit_traces():
    graph = torch.jit.trace(teacher_loss, teacher_inputs())
    for count in (7, 11):
        inputs = teacher_inputs(count, seed=1)
        torch.testing.assert_close(graph(*inputs), teacher_definition(*inputs))
        for actual, expected in zip(
            gradients_of(graph)(*inputs), gradients_of(teacher_definition)(*inputs), strict=True
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", ["kd_kl", "rkd_distance", "rkd_angle"])
def test_jit_traces_what_a_gradient_may_be_wanted_of(name, requires_grad):
    x, y, other = X[:4].float().requires_grad_(requires_grad), Y.float(), ALONG.float().requires_grad_()
    graph = torch.jit.trace(lambda x, y: getattr(functional, name)(x, y), (x, y[:4]))
    (expected,) = torch.autograd.grad(getattr(reference, name)(other, y), other)
    torch.testing.assert_close(torch.autograd.grad(graph(other, y), other)[0], expected)


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle])
def test_a_graph_recorded_without_a_gradient_says_so(loss):
    f, _, x = both(loss, "mean", "auto")
    graph = make_fx(f)(x)
    with pytest.raises(RuntimeError, match="a gradient of icckd's loss is wanted that was not when its graph was"):
        graph(x.clone().requires_grad_()).backward()


# --- compiled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "reduction"), [(kd_kl, "mean"), (intra_class_anchor, "sum"), (rkd_distance, "mean")])
def test_torch_func_within_compiled_code_is_right_or_refused(loss, reduction):
    f, definition, x = both(loss, reduction, "auto")
    wanted = [
        (grad(f), grad(definition)(x.double())),
        (lambda z: jvp(f, (z,), (ALONG.float(),))[1], jvp(definition, (x.double(),), (ALONG,))[1]),
    ]
    for function, expected in wanted:
        torch._dynamo.reset()
        close(torch.compile(function, backend="aot_eager")(x), expected)
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"icckd's losses cannot be compiled within torch[.]func's"):
            torch.compile(function, backend="aot_eager", fullgraph=True)(x)


def test_a_graph_of_operators_refuses_what_it_would_answer_with_zero():
    f, _, x = both(kd_kl, "mean", "auto")
    torch._dynamo.reset()
    compiled, recorded = torch.compile(f, backend="aot_eager", fullgraph=True), make_fx(f)(x)
    compiled(x)
    for attempt in (
        lambda: dual_tangent(compiled, x, x),
        lambda: dual_tangent(recorded, x, x),
        lambda: jvp(recorded, (x,), (x,)),
        lambda: grad(recorded)(x),
    ):
        with pytest.raises(RuntimeError, match="a compiled or recorded graph that holds icckd's operators cannot"):
            attempt()


# --- narrow labels ----------------------------------------------------------------------------------------------------

NARROW = [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32]


@pytest.mark.parametrize("m", [functional, reference], ids=["functional", "reference"])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_narrow_labels_are_what_wide_ones_are(m, dtype):
    """Class 156 is −100 in eight bits; num_classes and ignore_index may not fit either."""
    held = torch.iinfo(dtype)
    values = torch.tensor([value for value in (156, 5, 5, 199, 100, 100, 3, -1) if held.min <= value <= held.max])
    logits, anchor, positive = (torch.randn(len(values), n, generator=GENERATOR) for n in (200, 8, 8))
    for ignore_index in (-100, 255, -1, 5):
        wide = torch.where((values < 0) & (values != ignore_index), 7, values)
        for reduction in ("mean", "none"):
            options = {"ignore_index": ignore_index, "reduction": reduction}
            expected = m.cross_entropy_with_margin(logits, wide, **options)
            actual = m.cross_entropy_with_margin(logits, wide.to(dtype), **options)
            assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))
        margins = m.classification_margin(logits, wide.to(dtype), ignore_index=ignore_index)
        assert torch.equal(margins, m.classification_margin(logits, wide, ignore_index=ignore_index))
    for memory_dtype in (torch.int64, torch.int8, torch.uint8):
        memory_values = torch.tensor([5, 100, 100, 3]).to(memory_dtype)
        options = {"memory": positive[:4], "num_classes": 200}
        expected = m.intra_class_contrastive(anchor, positive, values, memory_labels=memory_values.long(), **options)
        actual = m.intra_class_contrastive(anchor, positive, values.to(dtype), memory_labels=memory_values, **options)
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint64, torch.float32], ids=str)
def test_labels_of_other_types_are_refused(dtype):
    labels = torch.zeros(7).to(dtype)
    x = X.float()
    for call in (
        functional.cross_entropy_with_margin,
        functional.classification_margin,
        lambda x, y: functional.intra_class_contrastive(x, x, y),
        lambda x, y: functional.intra_class_contrastive(x, x, LABELS, memory=x, memory_labels=y),
        lambda x, y: TeacherLoss()(x, y, x, x),
    ):
        with pytest.raises(TypeError, match=rf"labels has dtype {dtype}; it should be an integer type: torch.int64 or"):
            call(x, labels)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_narrow_label_beyond_the_classes_is_named(dtype):
    labels = torch.tensor([2, 100]).to(dtype)
    with pytest.raises(ValueError, match="labels holds 100; each should be in"):
        functional.cross_entropy_with_margin(torch.ones(2, 50), labels)
    with pytest.raises(ValueError, match="labels reach 100; they should be below num_classes = 50"):
        functional.intra_class_contrastive(torch.ones(2, 3), torch.ones(2, 3), labels, num_classes=50)


# --- inference tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_has_no_gradient_may_come_from_inference_mode(backend, dtype, reduction):
    with torch.inference_mode():
        y, labels, gate, memory = Y.to(dtype), LABELS.clamp(min=0).byte(), GATE.clone(), MEMORY.float()
        memory_labels, temperature = MEMORY_LABELS.clone(), torch.tensor(0.2)
    kd_reduction = "batchmean" if reduction == "mean" else "none"

    def losses(m, x, y, labels, gate, memory, memory_labels, temperature, **options):
        more = {"gate": gate, "memory": memory, "memory_labels": memory_labels, "temperature": temperature}
        return [
            m.cross_entropy_with_margin(x, labels, reduction=reduction, **options)[0],
            m.kd_kl(x, y, reduction=kd_reduction, **options),
            m.kd_kl(x, y, standardize=True, reduction=kd_reduction, **options),
            m.rkd_distance(x, y, **options),
            m.rkd_angle(x, y, **options),
            m.intra_class_contrastive(x, y, labels, reduction=reduction, **more, **options),
            m.intra_class_contrastive(y, x, labels, reduction=reduction, **options),
        ]

    others = gate, memory, memory_labels, temperature
    x = X.to(dtype).requires_grad_()
    z = x.detach().double().requires_grad_()
    # The definition saves what it is given: here it is given copies.
    exact = losses(reference, z, y.double().clone(), labels.clone(), *(t.clone() for t in others))
    for actual, expected in zip(losses(functional, x, y, labels, *others, backend=backend), exact, strict=True):
        close(*(torch.autograd.grad(loss.sum(), of)[0] for loss, of in ((actual, x), (expected, z))), dtype)


def test_a_student_from_inference_mode_needs_no_gradient():
    with torch.inference_mode():
        x = X.float()
    y = Y.float().requires_grad_()
    assert not functional.kd_kl(x, y).requires_grad
    assert not functional.rkd_angle(x, y).requires_grad
    assert functional.intra_class_contrastive(x, y, LABELS).requires_grad
