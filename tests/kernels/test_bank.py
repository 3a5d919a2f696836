"""Triton's products with rows of a memory bank, with guard rows around buffers: tiles, shares, indices of no row."""

import pytest
import torch

from icckd import reference
from icckd.kernels import bank as kernels
from tests.problems import bank_problem

# Rows wider than a tile, indices of several tiles, and of several programs a query (512 and more).
SIZES = [(1, 1, 1, 1), (3, 65, 17, 5), (2, 33, 128, 40), (2, 40, 131, 7), (1, 700, 20, 30), (2, 513, 129, 60)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products_and_sums(guard, sizes, dtype):
    query, bank, index, weight = bank_problem(*sizes, dtype=dtype)
    products = kernels.bank_products(guard(query), guard(bank), guard(index))
    sums = kernels.bank_sums(guard(weight), guard(bank), guard(index))
    expected = reference.bank_products(query.double(), bank.double(), index)
    torch.testing.assert_close(products.double(), expected, rtol=1e-5, atol=1e-5)
    expected = torch.einsum("bk,bkd->bd", weight.double(), bank.double()[index])
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [-1, 9, 2**40])
def test_an_index_of_no_row_makes_its_product_and_its_query_nan(guard, wrong):
    query, bank, index, weight = bank_problem(3, 6, 5, 9)
    index[1, 2] = wrong
    products = kernels.bank_products(guard(query), guard(bank), guard(index))
    assert products.isnan().nonzero().tolist() == [[1, 2]]
    sums = kernels.bank_sums(guard(weight), guard(bank), guard(index))
    assert sums.isnan().all(1).tolist() == [False, True, False]
    assert sums[::2].isfinite().all()


def test_nan_stays_with_its_row(guard):
    query, bank, index, weight = bank_problem(3, 6, 5, 9)
    bank[index[0, 0]] = torch.nan
    named = index == index[0, 0]
    products = kernels.bank_products(guard(query), guard(bank), guard(index))
    assert torch.equal(products.isnan(), named)
    sums = kernels.bank_sums(guard(weight), guard(bank), guard(index))
    assert torch.equal(sums.isnan().all(1), named.any(1))
