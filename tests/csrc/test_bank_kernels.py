"""The C++ products with rows of a memory bank, on the instruction set at hand: registers and tails, blocks, parts."""

import pytest
import torch

from icckd.backends import native
from tests.problems import bank_problem

operators = torch.ops.icckd_native
pytestmark = pytest.mark.skipif(native.why_unavailable() is not None, reason="icckd._C is not built")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [*range(1, 19), 127, 128, 145, 300])
def test_columns(dim, dtype):
    query, bank, index, weight = bank_problem(2, 21, dim, 30, dtype)
    rows = bank.double()[index]
    products = operators.bank_products(query, bank, index)
    torch.testing.assert_close(products.double(), (query.double()[:, None] * rows).sum(2), rtol=1e-5, atol=1e-5)
    sums = operators.bank_sums(weight, bank, index)
    torch.testing.assert_close(sums.double(), (weight.double()[:, :, None] * rows).sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [7, 8, 9, 255, 256, 257, 2048, 4099])
def test_indices(count):
    query, bank, index, weight = bank_problem(3, count, 20, 50)
    rows = bank.double()[index]
    products = operators.bank_products(query, bank, index)
    torch.testing.assert_close(products.double(), (query.double()[:, None] * rows).sum(2), rtol=1e-5, atol=1e-5)
    sums = operators.bank_sums(weight, bank, index)
    torch.testing.assert_close(sums.double(), (weight.double()[:, :, None] * rows).sum(1), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bank_of_several_tiles(dtype):
    """Rows of 1200 numbers, of which at most 128 make a tile, used 16 times a tile and more."""
    query, bank, index, weight = bank_problem(5, 200, 1200, 700, dtype)
    rows = bank.double()[index]
    products = operators.bank_products(query, bank, index)
    torch.testing.assert_close(products.double(), (query.double()[:, None] * rows).sum(2), rtol=1e-4, atol=1e-4)
    sums = operators.bank_sums(weight, bank, index)
    torch.testing.assert_close(sums.double(), (weight.double()[:, :, None] * rows).sum(1), rtol=1e-4, atol=1e-4)


def test_the_same_bits_whatever_the_threads():
    query, bank, index, weight = bank_problem(7, 300, 1200, 700)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append((operators.bank_products(query, bank, index), operators.bank_sums(weight, bank, index)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("wrong", [-1, 9, 2**62, -(2**63)])
@pytest.mark.parametrize("place", [0, 5])
def test_an_index_of_no_row_is_refused_instead_of_read(wrong, place):
    query, bank, index, weight = bank_problem(3, 6, 5, 9)
    index[2, place] = wrong
    for operator, given in ((operators.bank_products, query), (operators.bank_sums, weight)):
        with pytest.raises(RuntimeError, match=r"index holds an index that is not in \[0, 9\)"):
            operator(given, bank, index)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.zeros(3, 4)}, "query has size 4 in dimension 1; it should have 5"),
        ({"query": torch.zeros(3, 5).double()}, "query should be float32, bfloat16 or float16"),
        ({"bank": torch.zeros(9)}, "bank has 1 dimensions; it should have 2"),
        ({"index": torch.zeros(2, 6).long()}, "index has size 2 in dimension 0; it should have 3"),
        ({"index": torch.zeros(3, 6).int()}, "index has the wrong dtype"),
    ],
)
def test_wrong_tensors_raise_instead_of_crashing(changes, message):
    arguments = {"query": torch.zeros(3, 5), "bank": torch.zeros(9, 5), "index": torch.zeros(3, 6).long()}
    with pytest.raises(RuntimeError, match=message):
        operators.bank_products(*{**arguments, **changes}.values())
