"""What a kernel is compiled for ahead of time: `bench.aot` compiles what each kernel file lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icckd.kernels.tables import Options


@dataclass(frozen=True)
class Specialization:
    """A kernel with the types of its arguments and one choice of constants and launch options.

    kernel: The `triton.jit` function.
    signature: The type of every argument that is no constant, as Triton writes it ("*bf16", "i32", "tensordesc<…>").
    constants: The value of every other argument that is not in `options`.
    options: From `tables`: constants in capitals, and num_warps, num_stages.
    matrix_unit: Whether its machine code must use the matrix unit.
    description: What it is for, in a few words: "bfloat16, D = 512".
    divisible: The arguments that are divisible by 16: aligned pointers, strides of aligned rows.
    """

    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Options
    matrix_unit: bool = False
    description: str = ""
    divisible: tuple[str, ...] = ()
