"""The class memory's operator: its promises to the compiler, and that every backend serves it."""

import pytest
import torch

from icckd import backends
from icckd.ops.class_memory import class_memory_push


def arguments(generator, rows=7):
    features = torch.randn(rows, 4, generator=generator, dtype=torch.float32)
    labels = torch.randint(-1, 4, (rows,), generator=generator)
    return torch.zeros(3 * 2 + 1, 4), torch.zeros(3, dtype=torch.int64), features, labels


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_operator_is_what_it_says(name, rows, generator):
    if backends.why_unavailable(name):
        pytest.skip(backends.why_unavailable(name))
    torch.library.opcheck(class_memory_push, (*arguments(generator, rows), name))


def test_a_backend_skips_rows_of_no_class(generator):
    slots, pushed, features, _ = arguments(generator)
    backends.module("reference").class_memory_push(
        slots, pushed, features, torch.tensor([3, -1, 2, 2**40, -(2**40), 0, 2])
    )
    assert pushed.tolist() == [1, 0, 2]
    expected = torch.zeros_like(slots)
    expected[0], expected[4], expected[5] = features[5], features[2], features[6]
    assert torch.equal(slots, expected)
