"""The registered operators: schemas, fake kernels, autograd registration, compilation."""

import pytest
import torch

from icckd.functional import kd_kl, rkd_angle, rkd_distance
from icckd.ops import distillation as ops


def make(rows=13, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    student, teacher = torch.randn(2, rows, 6, generator=generator)
    return student.to(dtype), teacher


@pytest.mark.parametrize(("standardize", "dtype"), [(False, torch.bfloat16), (True, torch.float32)], ids=str)
def test_kd_kl_opcheck(backend, standardize, dtype):
    student, teacher = make(dtype=dtype)
    grad_rows = torch.rand(13, generator=torch.Generator().manual_seed(1))
    for x in (student, student.T.contiguous().T, student.clone().requires_grad_()):
        torch.library.opcheck(ops.kd_kl_rows, (x, teacher, 2.0, standardize, backend))
        torch.library.opcheck(ops.kd_kl_sum, (x, teacher, 2.0, standardize, True, backend))
    torch.library.opcheck(ops.kd_kl_rows_backward, (grad_rows, student, teacher, 2.0, standardize, backend))


@pytest.mark.parametrize(("need_grad", "dtype"), [(False, torch.bfloat16), (True, torch.float32)], ids=str)
@pytest.mark.parametrize("operator", [ops.rkd_distance, ops.rkd_angle], ids=["distance", "angle"])
def test_relational_opcheck(backend, operator, need_grad, dtype):
    student, teacher = make(dtype=dtype)
    torch.library.opcheck(operator, (student.requires_grad_(need_grad), teacher, need_grad, backend))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("function", [kd_kl, rkd_distance, rkd_angle], ids=lambda f: f.__name__)
def test_compiles_whole(backend, function, dynamic):
    def step(student, teacher):
        return 3 * function(student * 2, teacher, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (13, 21) if dynamic else (13,):
        student, teacher = make(rows)
        gradients, losses = [], []
        for call in (step, compiled):
            x = student.clone().requires_grad_()
            loss = call(x, teacher)
            loss.backward()
            gradients.append(x.grad)
            losses.append(loss.detach())
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-7)


def test_kd_kl_rows_compile_whole(backend):
    torch._dynamo.reset()
    compiled = torch.compile(kd_kl, fullgraph=True, backend="aot_eager")
    student, teacher = make()
    x = student.clone().requires_grad_()
    compiled(x, teacher, reduction="none", backend=backend).sum().backward()
    y = student.clone().requires_grad_()
    kd_kl(y, teacher, reduction="sum", backend=backend).backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("function", [kd_kl, rkd_distance, rkd_angle], ids=lambda f: f.__name__)
def test_second_derivative_is_refused(backend, function):
    student, teacher = make()
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(function(student, teacher, backend=backend), student, create_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        gradient.square().sum().backward()
