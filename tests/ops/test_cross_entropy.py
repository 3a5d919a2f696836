"""The registered operators: schemas, fake kernels, autograd registration, compilation."""

import pytest
import torch

from icckd.functional import cross_entropy_with_margin
from icckd.ops import cross_entropy as ops


def make(rows=13, classes=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, classes, generator=generator).to(dtype)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    labels[0] = -100
    return logits, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(backend, dtype):
    logits, labels = make(dtype=dtype)
    weight = torch.rand(13, generator=torch.Generator().manual_seed(1))
    for x in (logits, logits.T.contiguous().T, logits.clone().requires_grad_()):
        torch.library.opcheck(ops.cross_entropy_margin_rows, (x, labels, 0.1, "probability", -100, backend))
        for mean in (False, True):
            torch.library.opcheck(ops.cross_entropy_margin_sum, (x, labels, mean, 0.1, "logit", -100, backend))
    _, _, lse = ops.cross_entropy_margin_rows(logits, labels, 0.1, "logit", -100, backend)
    torch.library.opcheck(ops.cross_entropy_margin_rows_backward, (weight, lse, logits, labels, 0.1, -100, backend))


def test_lse_is_relative_to_the_maximum(backend):
    logits, labels = make()
    *_, lse = ops.cross_entropy_margin_rows(logits + 100, labels, 0.0, "logit", -100, backend)
    torch.testing.assert_close(lse[1:], (logits.logsumexp(1) - logits.amax(1))[1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_whole(backend, reduction, dynamic):
    def step(logits, labels):
        loss, margin = cross_entropy_with_margin(
            logits * 2, labels, label_smoothing=0.1, reduction=reduction, backend=backend
        )
        return 3 * loss.sum(), margin

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (13, 21) if dynamic else (13,):
        logits, labels = make(rows)
        gradients, results = [], []
        for function in (step, compiled):
            x = logits.clone().requires_grad_()
            loss, margin = function(x, labels)
            loss.backward()
            gradients.append(x.grad)
            results.append((loss.detach(), margin))
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-7)


def test_compiled_code_refuses_wrong_labels(backend):
    torch._dynamo.reset()
    compiled = torch.compile(cross_entropy_with_margin, fullgraph=True, backend="aot_eager")
    logits, labels = make()
    labels[3] = 7
    with pytest.raises(ValueError, match="labels holds 7"):
        compiled(logits, labels, backend=backend)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivative_is_refused(backend, reduction):
    logits, labels = make()
    logits.requires_grad_()
    loss, _ = cross_entropy_with_margin(logits, labels, reduction=reduction, backend=backend)
    (gradient,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        gradient.square().sum().backward()
