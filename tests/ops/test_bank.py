"""The registered operators of a memory bank: schemas, fake kernels, autograd registration, compilation, FLOP."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from icckd.functional import bank_products
from icckd.ops import bank as ops
from tests.problems import bank_problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(backend, dtype):
    query, bank, index, weight = bank_problem(3, 6, 5, 9, dtype)
    for x in (query, query.T.contiguous().T, query.clone().requires_grad_()):
        torch.library.opcheck(ops.bank_products, (x, bank, index, backend))
    for w in (weight, weight.T.contiguous().T, weight.clone().requires_grad_()):
        torch.library.opcheck(ops.bank_sums, (w, bank, index, backend))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(backend, dynamic):
    def step(query, bank, index):
        return bank_products(query * 2, bank, index, backend=backend).exp().sum()

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for sizes in ((3, 6, 5, 9), (4, 8, 5, 11)) if dynamic else ((3, 6, 5, 9),):
        query, bank, index, _ = bank_problem(*sizes)
        results = []
        for function in (step, compiled):
            x = query.clone().requires_grad_()
            loss = function(x, bank, index)
            loss.backward()
            results.append((loss.detach(), x.grad))
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)


def test_compiled_code_refuses_wrong_indices(backend):
    torch._dynamo.reset()
    compiled = torch.compile(bank_products, fullgraph=True, backend="aot_eager")
    query, bank, index, _ = bank_problem(3, 6, 5, 9)
    index[0, 1] = 9
    with pytest.raises(ValueError, match="index holds 9"):
        compiled(query, bank, index, backend=backend)


def test_flops_are_counted_as_products():
    query, bank, index, _ = bank_problem(3, 6, 5, 9)
    with FlopCounterMode(display=False) as counter:
        bank_products(query.requires_grad_(), bank, index).sum().backward()
    assert counter.get_total_flops() == 2 * (2 * 3 * 6 * 5)
