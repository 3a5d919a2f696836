"""The distillation losses under PyTorch's modes: compiled, transformed, recorded, without values, in inference mode."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from icckd import functional, reference
from tests.ops.test_rest_divergence import LABELS, make


def loss_of(module, name, **options):
    """The loss as a function of both sides and labels, which not all have."""
    if name in ("dkd", "nkd"):
        function, options = getattr(module, name), {"temperature": 2.0, **options}
        return lambda x, y, labels=None: function(x, y, LABELS if labels is None else labels, **options)
    return lambda x, y, _=None: getattr(module, name)(x, y, **options)


FUNCTIONS = ["dkd", "nkd", "ttm", "dist", "similarity_preserving", "pkt"]


@pytest.mark.parametrize(("name", "dynamic"), [(name, name in ("dkd", "pkt")) for name in FUNCTIONS])
def test_compiles_whole(name, dynamic):
    loss = loss_of(functional, name)

    def step(student, teacher, labels):
        return 3 * loss(student * 2, teacher, labels)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (7, 11) if dynamic else (7,):
        student, teacher = make(rows=rows)
        labels = LABELS.repeat(2)[:rows]
        results = []
        for call in (step, compiled):
            x = student.clone().requires_grad_()
            value = call(x, teacher, labels)
            value.backward()
            results.append((value.detach(), x.grad))
        torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


def test_attention_transfer_compiles_whole():
    torch._dynamo.reset()
    compiled = torch.compile(functional.attention_transfer, fullgraph=True, backend="aot_eager")
    student, teacher = torch.randn(2, 3, 4, 5).requires_grad_(), torch.randn(2, 6, 4, 5)
    loss = compiled(student, teacher)
    torch.testing.assert_close(loss, functional.attention_transfer(student, teacher))
    loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_func_and_forward_mode(name):
    f, definition = (loss_of(module, name) for module in (functional, reference))
    x, y = make()
    exact = x.double(), y.double()
    expected = grad(definition)(*exact)
    torch.testing.assert_close(grad(f)(x, y).double(), expected, rtol=1e-4, atol=1e-6)
    batch = torch.stack([x, -x])
    gradients = torch.stack([expected, grad(definition)(-exact[0], exact[1])])
    torch.testing.assert_close(vmap(grad(f), (0, None))(batch, y).double(), gradients, rtol=1e-4, atol=1e-6)
    tangent = jvp(lambda z: f(z, y), (x,), (y,))[1]
    expected = jvp(lambda z: definition(z, exact[1]), exact[:1], exact[1:])[1]
    torch.testing.assert_close(tangent.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dkd", "nkd", "ttm"])
def test_second_derivatives_are_refused(name):
    f = loss_of(functional, name)
    x, y = make()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(f(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="icckd's losses can be differentiated once only"):
        gradient.square().sum().backward()
    with pytest.raises(RuntimeError, match="icckd's losses can be differentiated once only"):
        jvp(lambda z: grad(f)(z, y), (x.detach(),), (y,))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_values_and_recorded(name):
    f = loss_of(functional, name)
    x, y = make()
    with FakeTensorMode(allow_non_fake_inputs=True):
        loss = f(torch.randn(7, 6, requires_grad=True), torch.randn(7, 6))
        loss.backward()
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    graph = make_fx(f, tracing_mode="symbolic")(x, y, LABELS)
    others = *make(rows=10), LABELS.repeat(2)[:10]
    torch.testing.assert_close(graph(*others), f(*others))


def test_teachers_of_inference_mode_are_taken():
    x, y = make()
    with torch.inference_mode():
        teacher, labels = y.clone(), LABELS.clone()
    for name in FUNCTIONS:
        student = x.clone().requires_grad_()
        arguments = [labels] if name in ("dkd", "nkd") else []
        getattr(functional, name)(student, teacher, *arguments).backward()
        expected = x.clone().requires_grad_()
        getattr(functional, name)(expected, y, *arguments).backward()
        assert torch.equal(student.grad, expected.grad), name
