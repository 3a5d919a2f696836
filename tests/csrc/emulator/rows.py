"""What the tests of the row-wise CUDA kernels share: matrices of any strides as the emulator takes them."""

import torch
from torch import Tensor

# Bytes of shared memory that a block may have: an H100's, and so few that rows of a thousand classes do not fit.
SHARED_LIMITS = (232448, 4096)

LAYOUTS = ("contiguous", "padded", "offset", "transposed", "strided", "expanded")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def memory_of(x: Tensor) -> Tensor:
    """All of the memory that a tensor looks at a part of, as a vector."""
    count = x.untyped_storage().nbytes() // x.element_size()
    return torch.empty(0, dtype=x.dtype).set_(x.untyped_storage(), 0, (count,), (1,))


def unwritten(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An output that nothing has been written to: NaN."""
    return torch.full(shape, torch.nan, dtype=dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers with other strides; what lies between them is NaN."""
    rows, columns = x.shape
    memory = {
        "contiguous": lambda: unwritten(rows, columns, dtype=x.dtype),
        "padded": lambda: unwritten(rows, (columns // 64 + 1) * 64, dtype=x.dtype)[:, :columns],
        "offset": lambda: unwritten(rows, columns + 3, dtype=x.dtype)[:, 1 : columns + 1],
        "transposed": lambda: unwritten(columns, rows, dtype=x.dtype).T,
        "strided": lambda: unwritten(rows, columns * 2, dtype=x.dtype)[:, ::2],
    }
    if layout == "expanded":
        return laid_out(x[:1], "contiguous").expand(rows, columns)
    return memory[layout]().copy_(x)
