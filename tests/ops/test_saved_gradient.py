"""The backward of losses whose gradients are computed with them: what it launches, what it reads, who may be harmed."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from icckd import backends
from icckd.functional import cross_entropy_with_margin, intra_class_contrastive, kd_kl, rkd_angle, rkd_distance
from icckd.ops.intra_class import intra_class_sum
from icckd.ops.saved_gradient import scaled_once
from tests.launches import launches

LABELS = torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 0, -1, 1])
COLUMNS = 7
# Sums or means whose backward is their operator's.
LOSSES = {
    "intra_class": lambda x, y, backend: intra_class_contrastive(x, y, LABELS, num_classes=3, backend=backend),
    "cross_entropy": lambda x, y, backend: cross_entropy_with_margin(
        x, LABELS.clamp(min=0), reduction="sum", backend=backend
    )[0],
    "kd_kl": lambda x, y, backend: kd_kl(x, y, backend=backend),
    "rkd_distance": lambda x, y, backend: rkd_distance(x, y, backend=backend),
    "rkd_angle": lambda x, y, backend: rkd_angle(x, y, backend=backend),
}


@pytest.fixture(params=LOSSES)
def loss(request, backend):
    """A loss of two matrices, by the backend."""
    return lambda x, y: LOSSES[request.param](x, y, backend)


@pytest.fixture
def x(generator):
    return torch.randn(len(LABELS), COLUMNS, generator=generator).requires_grad_()


@pytest.fixture
def y(generator):
    return torch.randn(len(LABELS), COLUMNS, generator=generator)


@pytest.fixture
def exact(loss, x, y):
    """The gradient of x where nothing but the loss is differentiated."""
    return torch.autograd.grad(loss(x, y), x)[0].clone()


@pytest.mark.skipif(backends.why_not("triton", torch.device("cpu"), torch.float32) is not None, reason="no interpreter")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["intra_class", "cross_entropy", "kd_kl"])
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_gradients_are_read_and_written_once_or_not_at_all(name, factor, dtype, x, y):
    """One launch for all gradients of a loss."""
    inputs = [x.detach().to(dtype).requires_grad_(), y.to(dtype)]
    if name == "intra_class":
        inputs[1].requires_grad_()
    loss = LOSSES[name](*inputs, "triton")
    with launches() as seen:
        gradients = torch.autograd.grad(loss, [z for z in inputs if z.requires_grad], torch.tensor(factor))
    assert seen.names == ["scale"]
    for gradient in gradients:
        touched = 0 if factor == 1 else gradient.numel()
        assert seen.read(gradient) == seen.written(gradient) == touched


def test_a_factor_of_one_costs_nothing(loss, x, y, backend):
    value = loss(x, y)
    with launches() as seen:
        torch.autograd.grad(value, x, torch.tensor(1.0))
    assert seen.names == (["scale"] if backend == "triton" else [])


def test_a_loss_used_twice(loss, x, y, exact):
    for combined in (lambda v: v + v, lambda v: v * 2, lambda v: (v - 3 * v) * -1):
        (gradient,) = torch.autograd.grad(combined(loss(x, y)), x)
        torch.testing.assert_close(gradient, 2 * exact)


def test_losses_of_the_same_input(loss, x, y, exact):
    losses = [loss(x, y) for _ in range(3)]
    factors = [torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.5)]
    (gradient,) = torch.autograd.grad(losses, x, factors)
    torch.testing.assert_close(gradient, 2.5 * exact)


def test_gradients_add_up_in_leaves(loss, x, y, exact):
    loss(x, y).backward()
    loss(x, y).backward()
    torch.testing.assert_close(x.grad, 2 * exact)


def test_a_kept_graph_comes_back_for_the_same_gradient(loss, x, y, exact):
    value = loss(x, y)
    for factor, keep in ((1.0, True), (3.0, True), (1.0, False)):
        (gradient,) = torch.autograd.grad(value, x, torch.tensor(factor), retain_graph=keep)
        torch.testing.assert_close(gradient, factor * exact)
        gradient.zero_()
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, x)


def test_receivers_may_change_the_gradient(loss, x, y, exact):
    x.register_hook(lambda gradient: gradient.mul_(4))
    value = loss(x, y)
    for keep in (True, False):
        (gradient,) = torch.autograd.grad(value, x, retain_graph=keep)
        torch.testing.assert_close(gradient, 4 * exact)


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_saved_tensors_may_be_packed(loss, x, y, exact, factor):
    with torch.autograd.graph.save_on_cpu():
        value = loss(x, y)
    torch.testing.assert_close(torch.autograd.grad(value, x, torch.tensor(factor))[0], factor * exact)
    with torch.autograd.graph.saved_tensors_hooks(lambda z: z.clone(), lambda z: z):
        value = loss(x, y)
    torch.testing.assert_close(torch.autograd.grad(value, x, torch.tensor(factor))[0], factor * exact)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(loss, x, y, exact, reentrant):
    (2 * checkpoint(loss, x, y, use_reentrant=reentrant)).backward()
    torch.testing.assert_close(x.grad, 2 * exact)


def test_a_batch_of_upstream_gradients(loss, x, y, exact):
    factors = torch.tensor([1.0, -2.0])
    (gradients,) = torch.autograd.grad(loss(x, y), x, factors, is_grads_batched=True)
    torch.testing.assert_close(gradients, factors[:, None, None] * exact)


@pytest.mark.parametrize("factor", [torch.nan, torch.inf, -torch.inf, 0.0])
def test_any_factor_multiplies(backend, factor):
    gradients = [torch.tensor([[1.0, -2.0], [0.0, torch.nan]]), torch.empty(0), torch.tensor(3.0)]
    expected = [gradient * factor for gradient in gradients]
    backends.module(backend).scale_gradients(torch.tensor(factor), *gradients)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0, equal_nan=True)


def test_a_loss_that_takes_no_part_has_no_gradient():
    assert scaled_once([torch.ones(2)] * 2, None, torch.ones(()), "reference") == [None, None]


@pytest.mark.parametrize("options", [{}, {"retain_graph": True}, {"create_graph": True}], ids=str)
def test_a_temperature_of_the_host_meets_rows_of_a_device(options):
    """Devices are told apart without one: tensors on "meta" have a device of their own, and no numbers."""
    rows = [torch.empty(6, 3, device="meta", requires_grad=True) for _ in range(2)]
    labels = torch.empty(6, dtype=torch.int64, device="meta")
    arguments = [*rows, labels, None, None, None, torch.tensor(0.1), True, True, 3, True, True, False, "reference"]
    loss = intra_class_sum(*arguments)[0]
    gradients = torch.autograd.grad(loss, rows, **options)
    assert [(x.device.type, x.shape) for x in gradients] == [("meta", (6, 3))] * 2
