"""The operators of dkd, nkd and ttm: schemas, fake kernels, autograd; labels that name no class."""

import pytest
import torch

from icckd import functional
from icckd.backends import eager
from icckd.ops.distillation import transformed_teacher_rows, transformed_teacher_rows_backward
from icckd.ops.rest_divergence import rest_divergence_rows, rest_divergence_rows_backward
from tests.functional.test_predictions import calls

LABELS = torch.tensor([0, 3, 5, 1, 2, 2, 4])


def make(dtype=torch.float32, rows=7):
    generator = torch.Generator().manual_seed(rows)
    student, teacher = torch.randn(2, rows, 6, generator=generator)
    return student.to(dtype), teacher


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
