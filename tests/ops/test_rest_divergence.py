"""The operators of dkd, nkd and ttm: schemas, fake kernels, autograd, compilation, transforms."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from icckd import functional, reference
from icckd.backends import eager
from icckd.ops.distillation import transformed_teacher_rows, transformed_teacher_rows_backward
from icckd.ops.rest_divergence import rest_divergence_rows, rest_divergence_rows_backward
from tests.functional.test_predictions import calls

LABELS = torch.tensor([0, 3, 5, 1, 2, 2, 4])


def make(dtype=torch.float32, rows=7):
    generator = torch.Generator().manual_seed(rows)
    student, teacher = torch.randn(2, rows, 6, generator=generator)
    return student.to(dtype), teacher


def loss_of(module, name, **options):
    """The loss as a function of both sides and labels, which not all have."""
    if name in ("dkd", "nkd"):
        function, options = getattr(module, name), {"temperature": 2.0, **options}
        return lambda x, y, labels=None: function(x, y, LABELS if labels is None else labels, **options)
    return lambda x, y, _=None: getattr(module, name)(x, y, **options)


FUNCTIONS = ["dkd", "nkd", "ttm", "dist", "similarity_preserving", "pkt"]


@pytest.mark.parametrize(("function", "backend"), calls((functional.dkd,)))
def test_rest_divergence_opcheck(function, backend):
    student, teacher = make(torch.bfloat16)
    one, other = torch.rand(2, 7, generator=torch.Generator().manual_seed(1))
    for x in (student.T.contiguous().T, student.clone().requires_grad_()):
        torch.library.opcheck(rest_divergence_rows, (x, teacher, LABELS, 2.0, 1.0, backend))
    torch.library.opcheck(rest_divergence_rows_backward, (one, other, student, teacher, LABELS, 2.0, 1.0, backend))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("function", "backend"), calls((functional.ttm,)))
def test_transformed_teacher_opcheck(function, backend, weighted):
    student, teacher = make(torch.bfloat16)
    for x in (student, student.clone().requires_grad_()):
        torch.library.opcheck(transformed_teacher_rows, (x, teacher, 0.5, weighted, backend))
    grad_rows = torch.rand(7, generator=torch.Generator().manual_seed(1))
    torch.library.opcheck(transformed_teacher_rows_backward, (grad_rows, student, teacher, 0.5, weighted, backend))


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


def test_a_label_that_names_no_class_makes_its_row_nan_where_it_cannot_be_checked():
    """As on a GPU; here the operators' backend is called below the check."""
    x, y = make()
    labels = LABELS.clone()
    labels[2], labels[4] = 6, -1
    rows = eager.rest_divergence_rows(x, y, labels, 2.0, 1.0)
    gradient = eager.rest_divergence_rows_backward(torch.ones(7), torch.ones(7), x, y, labels, 2.0, 1.0)
    wrong = [False, False, True, False, True, False, False]
    assert all(row.isnan().tolist() == wrong for row in rows)
    assert gradient.isnan().all(1).tolist() == wrong
    assert gradient[[0, 1, 3, 5, 6]].isfinite().all()
