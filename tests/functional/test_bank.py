"""Products with rows of a memory bank on every backend, against float64: dtypes, sizes, strides, modes, wrong calls."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from icckd import BackendUnavailable, backends, reference
from icckd.backends.eager import bank as eager
from icckd.functional import bank_products
from tests.problems import SMALL, assert_as_accurate, bank_problem

# (B, K, D, N): ragged, prime, single, empty; few rows for many indices, and many for few.
SIZES = [
    (3, 5, 7, 11), (1, 1, 1, 1), (1, 97, 33, 2), (5, 1, 16, 300), (2, 70, 129, 13), (4, 19, 64, 1009), (1, 1, 200, 3),
    (0, 4, 5, 6), (3, 0, 5, 6), (2, 3, 0, 4), (0, 0, 3, 0), (2, 0, 3, 0),
]  # fmt: skip


def with_gradient(function, query, bank, index, upstream, **options):
    query = query.detach().requires_grad_()
    products = function(query, bank, index, **options)
    products.backward(upstream.to(products.dtype))
    return products.detach(), query.grad


def assert_right(backend, query, bank, index, upstream):
    exact = with_gradient(reference.bank_products, query.double(), bank.double(), index, upstream)
    plain = with_gradient(reference.bank_products, query, bank, index, upstream)
    computed = with_gradient(bank_products, query, bank, index, upstream, backend=backend)
    for actual, same_precision, expected in zip(computed, plain, exact, strict=True):
        assert (actual.dtype, actual.shape) == (same_precision.dtype, same_precision.shape)
        if actual.numel():
            assert_as_accurate(actual, same_precision, expected, 1e-6 * float(expected.abs().max()) + 1e-6)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_is_as_accurate_as_pytorch(backend, sizes, dtype):
    assert_right(backend, *bank_problem(*sizes, dtype=dtype))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)], ids=str)
def test_two_dtypes(backend, dtypes):
    assert_right(backend, *bank_problem(3, 9, 37, 20, *dtypes))


def test_double_precision_is_computed_by_the_reference():
    query, bank, index, upstream = bank_problem(3, 9, 37, 20, torch.float32, torch.float64)
    products, gradient = with_gradient(bank_products, query, bank, index, upstream)
    expected, expected_gradient = with_gradient(reference.bank_products, query.double(), bank, index, upstream)
    torch.testing.assert_close(products, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient.float())


@pytest.mark.parametrize("rows", [10, 400])
def test_gradcheck(rows):
    query, bank, index, _ = bank_problem(3, 7, 5, rows, torch.float64)
    torch.autograd.gradcheck(
        lambda x: bank_products(x, bank, index), query.requires_grad_(), check_forward_ad=True, check_batched_grad=True
    )
    torch.autograd.gradgradcheck(lambda x: bank_products(x, bank, index).square(), query)


LAYOUTS = {
    "transposed": lambda x: x.T.contiguous().T,
    "every second column": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "from the second column on": lambda x: torch.cat([x[:, :1], x], dim=1)[:, 1:],
    "equal rows": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(backend, layout):
    query, bank, index, upstream = map(LAYOUTS[layout], bank_problem(3, 6, 21, 9))
    results = with_gradient(bank_products, query, bank, index, upstream, backend=backend)
    dense = (x.contiguous() for x in (query, bank, index, upstream))
    for actual, expected in zip(results, with_gradient(bank_products, *dense, backend=backend), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_narrow_indices(backend, dtype):
    query, bank, index, _ = bank_problem(3, 6, 5, 9)
    assert torch.equal(
        bank_products(query, bank, index.to(dtype), backend=backend), bank_products(query, bank, index, backend=backend)
    )


def test_same_bits_every_time(backend):
    inputs = bank_problem(3, 600, 40, 50)
    first = with_gradient(bank_products, *inputs, backend=backend)
    assert all(map(torch.equal, first, with_gradient(bank_products, *inputs, backend=backend)))


def test_the_bank_gets_no_gradient(backend):
    query, bank, index, _ = bank_problem(3, 6, 5, 9)
    assert not bank_products(query, bank.requires_grad_(), index, backend=backend).requires_grad


@pytest.mark.parametrize("wrong", [-1, 9, 2**40])
def test_an_index_of_no_row_is_named(backend, wrong):
    query, bank, index, _ = bank_problem(3, 6, 5, 9)
    index[1, 2] = wrong
    with pytest.raises(ValueError, match=rf"index holds {wrong}; each should be in \[0, 9\)"):
        bank_products(query, bank, index, backend=backend)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query": torch.zeros(3, 5).long()}, TypeError, "query has dtype torch.int64"),
        ({"query": torch.zeros(5)}, ValueError, r"query has shape \(5,\)"),
        ({"bank": torch.zeros(9, 4)}, ValueError, r"bank has shape \(9, 4\); it should be \(N, 5\)"),
        ({"index": torch.zeros(3, 6)}, TypeError, "index has dtype torch.float32; it should be an integer type"),
        ({"index": torch.zeros(2, 6).long()}, ValueError, r"index has shape \(2, 6\); it should be \(3, K\)"),
        ({"index": [[0]]}, TypeError, "index is a list"),
        ({"bank": torch.zeros(9, 5, device="meta")}, ValueError, "bank is on meta; it should be on cpu"),
        ({"backend": "fast"}, ValueError, "backend is 'fast'"),
    ],
)
def test_wrong_arguments_are_named(changes, error, message):
    arguments = {"query": torch.zeros(3, 5), "bank": torch.zeros(9, 5), "index": torch.zeros(3, 6).long()}
    with pytest.raises(error, match=message):
        bank_products(**{**arguments, **changes})


def test_the_cuda_backend_has_no_kernel_and_says_who_has(monkeypatch):
    monkeypatch.setattr(backends, "why_unavailable", lambda backend: None)
    with pytest.raises(BackendUnavailable, match=r"it has no kernel for bank; 'cpu', 'triton', 'reference' can"):
        backends.select("cuda", torch.device("cuda"), torch.float32, "bank")
    assert backends.automatic(torch.device("cpu"), torch.float32, "bank").backend == "cpu"


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_both_ways_of_plain_pytorch_agree(dtype):
    query, bank, index, weight = bank_problem(4, 50, 30, 40, dtype)
    expected = reference.bank_products(query.double(), bank.double(), index)
    for way in (eager.whole_bank_products, eager.gathered_products):
        with torch.autocast("cpu", torch.bfloat16):
            products = way(query, bank, index)
        torch.testing.assert_close(products.double(), expected, rtol=1e-5, atol=1e-5)
    expected = torch.einsum("bk,bkd->bd", weight.double(), bank.double()[index])
    torch.testing.assert_close(eager.whole_bank_sums(weight, bank, index).double(), expected, rtol=1e-5, atol=1e-5)


# --- PyTorch's modes --------------------------------------------------------------------------------------------------


def test_derivatives_of_every_kind(backend):
    query, bank, index, upstream = bank_problem(2, 6, 5, 9)
    exact = [x.double() for x in (query, bank)]

    def loss(function, bank, **options):
        return lambda x: (function(x, bank, index, **options).exp() * upstream).sum()

    f, definition = loss(bank_products, bank, backend=backend), loss(reference.bank_products, exact[1])
    for transform in (
        lambda f, x: grad(f)(x),
        lambda f, x: jvp(f, (x,), (x,))[1],
        lambda f, x: jacrev(f)(x),
        lambda f, x: jacfwd(f)(x),
        lambda f, x: hessian(f)(x),
        lambda f, x: vmap(f)(torch.stack([x, -x])),
        lambda f, x: vmap(grad(f))(torch.stack([x, -x])),
        lambda f, x: torch.autograd.functional.hvp(f, x, x)[1],
    ):
        torch.testing.assert_close(transform(f, query).double(), transform(definition, exact[0]), rtol=1e-4, atol=1e-4)


def test_vmap_over_indices(backend):
    query, bank, index, _ = bank_problem(4, 6, 5, 9)
    many = torch.stack([index, index.flip(1)])
    expected = torch.stack([bank_products(query, bank, x, backend=backend) for x in many])
    assert torch.equal(vmap(lambda x: bank_products(query, bank, x, backend=backend))(many), expected)


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_shapes_without_values(device):
    with FakeTensorMode():
        query, bank = torch.zeros(3, 5, device=device, dtype=torch.bfloat16), torch.zeros(9, 5, device=device)
        products = bank_products(query, bank, torch.zeros(3, 6, device=device, dtype=torch.int64))
    assert (products.shape, products.dtype, products.device.type) == ((3, 6), torch.float32, device)


def test_gradients_without_values():
    with FakeTensorMode():
        query = torch.zeros(3, 5, dtype=torch.bfloat16, requires_grad=True)
        products = bank_products(query, torch.zeros(9, 5), torch.zeros(3, 6, dtype=torch.int64))
        (gradient,) = torch.autograd.grad(products.sum(), query)
    assert (gradient.shape, gradient.dtype) == ((3, 5), torch.bfloat16)


def test_a_recorded_graph_computes_other_data(backend):
    def gradient(query, bank, index):
        query = query.detach().requires_grad_()
        return torch.autograd.grad(bank_products(query, bank, index, backend=backend).exp().sum(), query)[0]

    *inputs, _ = bank_problem(3, 6, 5, 9)
    graph = make_fx(gradient, tracing_mode="symbolic")(*inputs)
    *others, _ = bank_problem(4, 8, 5, 12, seed=1)
    torch.testing.assert_close(graph(*others), gradient(*others))


def test_inference_tensors_as_bank(backend):
    query, bank, index, upstream = bank_problem(3, 6, 5, 9)
    with torch.inference_mode():
        made = bank.clone()
    results = with_gradient(bank_products, query, made, index, upstream, backend=backend)
    assert all(map(torch.equal, results, with_gradient(bank_products, query, bank, index, upstream, backend=backend)))
