"""weak_spectral against its formula, pair by pair, in float64."""

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from icckd import BackendUnavailable, reference
from icckd.functional import weak_spectral
from tests.problems import SMALL, assert_as_accurate

SIZES = [(1, 3, 2), (2, 1, 1), (11, 6, 4)]
SETTINGS = [{}, {"alpha": 2.0, "beta": 0.5, "kappa": 3.0}]


def make(rows=11, dim=6, classes=4, dtype=torch.float32, seed=0):
    """Two views of unit length but for rounding, and posteriors."""
    generator = torch.Generator().manual_seed(seed + 1000 * rows + dim)
    view1 = torch.randn(rows, dim, generator=generator)
    view2 = view1 + 0.5 * torch.randn(rows, dim, generator=generator)
    posterior = (2 * torch.randn(rows, classes, generator=generator)).softmax(1)
    view1, view2 = (x / x.norm(dim=1, keepdim=True) for x in (view1, view2))
    return view1.to(dtype), view2.to(dtype), posterior.to(dtype)


def loop(view1, view2, posterior, alpha=1.0, beta=12.0, kappa=1.0):
    """The formula in float64, one pair after the other."""
    u, v, q = (x.double() for x in (view1, view2, posterior))
    rows, classes = q.shape
    same_image = sum(u[i] @ v[i] for i in range(rows)) / rows
    same_class, spread = u.sum() * 0, u.sum() * 0
    for x, y in ((u, v), (u, u), (v, v)):
        for i in range(rows):
            for j in range(rows):
                if i != j:
                    same_class = same_class + (q[i] @ q[j]) * (x[i] @ y[j]) / (rows * (rows - 1)) / 3
    z = torch.cat([u, v])
    for a in range(2 * rows):
        for b in range(2 * rows):
            if a != b:
                spread = spread + (z[a] @ z[b]) ** 2 / (2 * rows * (2 * rows - 1))
    return -2 * alpha * same_image - 2 * beta * same_class + kappa * (alpha + beta / classes) ** 2 * spread


def results(function, view1, view2, posterior, **options):
    """The loss, and the gradients of both views."""
    view1, view2, posterior = (x.detach().requires_grad_() for x in (view1, view2, posterior))
    loss = function(view1, view2, posterior, **options)
    loss.backward()
    if function is not loop:
        assert posterior.grad is None
    return loss.detach(), view1.grad, view2.grad


@pytest.mark.parametrize("dtype", [*SMALL, torch.float64], ids=str)
@pytest.mark.parametrize(("rows", "dim", "classes"), SIZES)
def test_is_the_formula(rows, dim, classes, dtype):
    inputs = make(rows, dim, classes, dtype)
    for settings in SETTINGS:
        exact = results(loop, *(x.double() for x in inputs), **settings)
        plain = results(reference.weak_spectral, *inputs, **settings)
        actual = results(weak_spectral, *inputs, **settings)
        assert [x.dtype for x in actual] == [torch.promote_types(dtype, torch.float32), dtype, dtype]
        rounding = 1e-12 if dtype == torch.float64 else 2e-6
        for x, same, truth in zip(actual, plain, exact, strict=True):
            assert_as_accurate(x, same, truth, slack=rounding * (1 + float(truth.abs().max())))


@pytest.mark.parametrize(("rows", "dim", "classes"), SIZES)
def test_the_definition_is_the_formula(rows, dim, classes):
    inputs = make(rows, dim, classes, torch.float64)
    for settings in SETTINGS:
        torch.testing.assert_close(
            results(reference.weak_spectral, *inputs, **settings), results(loop, *inputs, **settings)
        )


def test_what_is_left_of_nearly_orthogonal_rows():
    """Of ‖ZᵀZ‖² two parts in a thousand are pairs; what is lost of them is in proportion to the whole."""
    generator = torch.Generator().manual_seed(2)
    view1, view2 = (torch.nn.functional.normalize(torch.randn(4, 4000, generator=generator)) for _ in range(2))
    posterior = torch.full((4, 2), 0.5)
    options = {"alpha": 0.0, "beta": 1.0, "kappa": 1.0}
    actual = results(weak_spectral, view1, view2, posterior, **options)
    exact = results(loop, view1, view2, posterior, **options)
    assert float(exact[0].abs()) < 2e-2
    for x, truth in zip(actual, exact, strict=True):
        torch.testing.assert_close(x.double(), truth.double(), rtol=0, atol=1e-7)


def test_a_single_row_has_no_others():
    """It has its two views: L1 and L3 are left."""
    view1, view2, posterior = torch.tensor([[3.0, 0.1]]), torch.tensor([[0.7, 2.0]]), torch.tensor([[0.3, 0.7]])
    product = 3 * 0.7 + 0.1 * 2
    loss, gradient, _ = results(weak_spectral, view1, view2, posterior)
    assert float(loss) == pytest.approx(-2 * product + 49 * product**2, rel=1e-5)
    torch.testing.assert_close(gradient, (-2 + 98 * product) * view2, rtol=1e-5, atol=0)


def test_without_rows():
    loss, gradient, _ = results(weak_spectral, torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 2))
    assert loss == 0
    assert gradient.shape == (0, 3)
    assert reference.weak_spectral(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 2)) == 0


def test_never_holds_a_matrix_of_pairs():
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            result = operator(*args, **kwargs or {})
            sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
            self.numbers = max([self.numbers, *sizes])
            return result

    inputs = make(rows=200, dim=7, classes=3)
    with Largest() as largest:
        results(weak_spectral, *inputs)
    assert largest.numbers == 200 * 7


def test_gradcheck_and_second_derivatives():
    view1, view2, posterior = make(5, 3, 2, torch.float64)
    inputs = view1.requires_grad_(), view2.requires_grad_()

    def loss(x, y):
        return weak_spectral(x, y, posterior, beta=2.0)

    assert torch.autograd.gradcheck(loss, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_torch_func():
    view1, view2, posterior = make(dtype=torch.float64)

    def of(function):
        return lambda x: function(x, view2, posterior)

    own, definition = map(of, (weak_spectral, reference.weak_spectral))
    torch.testing.assert_close(grad(own)(view1), grad(definition)(view1))
    batch = torch.stack([view1, -view1])
    torch.testing.assert_close(vmap(grad(own))(batch), torch.stack([grad(definition)(x) for x in batch]))
    torch.testing.assert_close(jvp(own, (view1,), (view2,)), jvp(definition, (view1,), (view2,)))


def test_compiles_whole():
    torch._dynamo.reset()
    compiled = torch.compile(weak_spectral, fullgraph=True, backend="aot_eager")
    inputs = make()
    torch.testing.assert_close(results(compiled, *inputs), results(weak_spectral, *inputs))


def test_under_autocast_stays_in_float32():
    inputs = make(dim=64)
    expected = results(weak_spectral, *inputs)
    view1 = inputs[0].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = weak_spectral(view1, *inputs[1:])
    loss.backward()
    assert torch.equal(loss, expected[0])
    assert torch.equal(view1.grad, expected[1])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"view1": [1.0]}, TypeError, "view1 is a list"),
        ({"view1": torch.zeros(4)}, ValueError, r"view1 has shape \(4,\)"),
        ({"view2": torch.zeros(4, 6)}, ValueError, r"view2 has shape \(4, 6\); it should be \(4, 5\)"),
        ({"view2": torch.zeros(4, 5).int()}, TypeError, "view2 has dtype torch.int32"),
        ({"view2": torch.zeros(4, 5, device="meta")}, ValueError, "view2 is on meta"),
        ({"posterior": torch.zeros(3, 2)}, ValueError, r"posterior has shape \(3, 2\)"),
        ({"posterior": torch.zeros(4, 0)}, ValueError, r"posterior has shape \(4, 0\); it should have at least one"),
        ({"posterior": torch.zeros(4, 2, device="meta")}, ValueError, "posterior is on meta"),
        ({"alpha": -1.0}, ValueError, "alpha is -1.0"),
        ({"beta": "12"}, TypeError, "beta is '12'"),
        ({"kappa": float("nan")}, ValueError, "kappa is nan"),
        ({"backend": "gpu"}, ValueError, "backend is 'gpu'"),
        ({"backend": "cpu"}, BackendUnavailable, "no kernel for weak_spectral; 'reference' can compute it"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {"view1": torch.zeros(4, 5), "view2": torch.zeros(4, 5), "posterior": torch.zeros(4, 2), **change}
    with pytest.raises(error, match=message):
        weak_spectral(**arguments)
