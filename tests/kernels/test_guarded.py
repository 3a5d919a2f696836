"""The guards see what they should see."""

import pytest
import torch

from tests.kernels.guarded import guarded


def _package_function(code: str):
    """A function as if the package had it."""
    namespace = {"__name__": "icckd.example", "torch": torch}
    exec(code, namespace)
    return namespace["f"]


@pytest.mark.parametrize("call", ["torch.empty(3, 4)", "torch.empty_like(x)", "x.new_empty((3, 4))"])
def test_unwritten_memory_is_poison(call):
    f = _package_function(f"def f(x): return {call}")
    with guarded():
        assert f(torch.zeros(3, 4)).isnan().all()
        assert (f(torch.zeros(3, 4, dtype=torch.int32)) > 2**29).all() or "torch.empty(" in call
    assert torch.empty(2).shape == (2,)


@pytest.mark.parametrize("call", ["torch.zeros(3, 4)", "torch.zeros_like(x)", "x.new_zeros(3, 4)"])
def test_values_are_kept(call):
    with guarded():
        assert torch.equal(_package_function(f"def f(x): return {call}")(torch.ones(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("offset", [-1, 12, -300, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32], ids=str)
def test_a_write_beside_a_tensor_is_seen(offset, dtype):
    f = _package_function(f"def f(): return torch.empty(3, 4, dtype={dtype})")

    def write(x):
        x.as_strided((1,), (1,), x.storage_offset() + offset).fill_(7)

    with pytest.raises(AssertionError, match="guard rows of"), guarded():
        write(f())
    with pytest.raises(AssertionError, match="guard rows of an input"), guarded() as guard:
        write(guard(torch.ones(3, 4, dtype=dtype)))


def test_a_write_inside_is_not():
    with guarded() as guard:
        guard(torch.ones(3, 4)).fill_(7)
        _package_function("def f(): return torch.empty(3, 4)")().fill_(7)
        _package_function("def f(): return torch.empty(0, 4)")()
