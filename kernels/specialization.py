"""What a kernel is compiled for ahead of time: `bench.aot` compiles what each kernel file lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icckd.kernels.tables import Options

# Triton's names of the element types that kernels take.
ELEMENTS = {"bf16": 2, "fp16": 2, "fp32": 4}


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


def specialize(
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    options: Options,
    *,
    matrix_unit: bool = False,
    description: str = "",
    divisible: tuple[str, ...] = (),
) -> Specialization:
    """The same, from the types of arguments by name: those named nowhere are 32-bit integers, pointers are aligned."""
    names = [name for name in kernel.arg_names if name not in constants and name not in options]
    signature = {name: types.get(name, "i32") for name in names}
    aligned = tuple(name for name, type_ in signature.items() if type_.startswith("*") or name in divisible)
    return Specialization(kernel, signature, constants, options, matrix_unit, description, aligned)
