"""Compiles every Triton kernel in every shipped configuration, without a GPU, and reads the machine code.

Kernels are found by walking `icckd.kernels`: a module's `specializations(architecture)` lists its compiled forms. Exit
status 1 where one does not compile, spills registers, needs more memory on chip than the architecture has, or should
use the matrix unit and does not. A form that should must show the architecture's own instruction, wgmma on sm_90 and
tcgen05 on sm_100, unless its tile has fewer rows than that instruction takes (64): then mma will do.

    registers    of a thread (AMD: vector registers, those of the matrix unit included)
    spills       instructions that load or store spilled registers (AMD: spilled registers)
    stack        bytes of a thread's local memory
    shared       bytes of shared memory of a program
    matrix_unit  which matrix instructions the machine code uses: mma, wgmma, tcgen05, mfma, or none (null)
"""

import argparse
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icckd.kernels.specialization import Specialization

Row = dict[str, Any]
# Compiler target and warp size.
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
# Bytes of shared memory that a program can have, by the vendors' programming guides.
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
# Columns of tensor memory of a multiprocessor (sm_100).
TENSOR_MEMORY = 512
# The matrix instructions in machine code, those of newer architectures first.
MATRIX_INSTRUCTIONS = {
    "tcgen05": r"\bUTC\w*MMA\b",
    "wgmma": r"\b[HIQ]GMMA\b",
    "mma": r"\b[HIDQ]MMA\b",
    "mfma": r"\bv_mfma_\w+",
}
OWN_INSTRUCTION = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}
# The fewest rows of a tile that wgmma and tcgen05 multiply.
LEAST_ROWS = 64


def modules(package: str = "icckd.kernels") -> list[str]:
    """The modules of `package` that list what they are compiled for."""
    path = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(path, f"{package}."))
    return [name for name in names if hasattr(importlib.import_module(name), "specializations")]


@cache
def distinct(module: str, architecture: str) -> "list[tuple[Specialization, str]]":
    """The compiled forms of a module's kernels, each once, with all that it is for."""
    forms: dict[str, Specialization] = {}
    uses: dict[str, list[str]] = {}
    for form in importlib.import_module(module).specializations(architecture):
        key = identity(form)
        forms.setdefault(key, form)
        uses.setdefault(key, []).append(form.description)
    return [(form, "; ".join(dict.fromkeys(uses[key]))) for key, form in forms.items()]


def identity(form: "Specialization") -> str:
    """The same for two forms where they are compiled to the same code."""
    return repr((form.kernel.__name__, _arguments(form), sorted(form.options.items()), sorted(form.divisible)))


def examine(form: "Specialization", architecture: str) -> Row:
    """Compile one form; its row. What went wrong, if anything, is in its "problem"."""
    row = {
        "kernel": form.kernel.__name__,
        "arch": architecture,
        "config": ", ".join(f"{name}={value}" for name, value in form.options.items()),
        "description": form.description,
    }
    try:
        compiled = _compile(form, architecture)
    # A compiler's failure can be any exception; it is this row's result.
    except Exception as error:
        return {**row, "problem": f"does not compile: {_last_line(error)}"}
    read = _read_amd if architecture.startswith("gfx") else _read_nvidia
    row |= {"shared": compiled.metadata.shared, **read(compiled)}
    tensor_memory = getattr(compiled.metadata, "tmem_size", 0) or 0
    return {**row, "problem": _problem(row, accepted_instructions(form, architecture), tensor_memory)}


def accepted_instructions(form: "Specialization", architecture: str) -> set[str]:
    """The matrix instructions of which the machine code must show one; empty where it needs none."""
    if not form.matrix_unit:
        return set()
    rows = form.options.get("BLOCK_M", form.options.get("BLOCK", LEAST_ROWS))
    smaller = {"mma"} if rows < LEAST_ROWS and architecture.startswith("sm") else set()
    return {OWN_INSTRUCTION[architecture]} | smaller


def _problem(row: Row, accepted: set[str], tensor_memory: int) -> str | None:
    if row["spills"]:
        return "spills registers"
    if row["shared"] > SHARED_MEMORY[row["arch"]]:
        return f"needs more than {SHARED_MEMORY[row['arch']]} bytes of shared memory"
    if tensor_memory > TENSOR_MEMORY:
        return f"needs more than {TENSOR_MEMORY} columns of tensor memory"
    if accepted and row["matrix_unit"] not in accepted:
        return f"does not use {' or '.join(sorted(accepted))}"
    return None


def _compile(form: "Specialization", architecture: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants = _arguments(form)
    attributes = {
        (form.kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name in form.divisible
        if name in form.signature
    }
    launch = {name: value for name, value in form.options.items() if not name.isupper()}
    source = ASTSource(form.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget(*TARGETS[architecture]), options=launch)


def _arguments(form: "Specialization") -> tuple[dict[str, str], dict[str, Any]]:
    """The type of every argument in the kernel's order, and the values of the constant ones."""
    values = {**form.constants, **form.options}
    signature = {name: form.signature.get(name, "constexpr") for name in form.kernel.arg_names}
    missing = [name for name, type_ in signature.items() if type_ == "constexpr" and name not in values]
    if missing:
        raise ValueError(f"{form.kernel.__name__}: {', '.join(missing)}: neither a type nor a value is given")
    return signature, {name: values[name] for name, type_ in signature.items() if type_ == "constexpr"}


def _read_nvidia(compiled: Any) -> Row:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        if found is None:
            raise RuntimeError(f"cuobjdump tells no registers: {usage}")
        registers, stack = map(int, found.groups())
        # Disassembling is slow: without a stack nothing is spilled, without mma in the PTX no matrix unit used.
        code = _cuobjdump("-sass", file.name) if stack or "mma" in compiled.asm["ptx"] else ""
    return {
        "registers": registers,
        "stack": stack,
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "matrix_unit": _matrix_unit(code),
    }


def _cuobjdump(option: str, file: str) -> str:
    import triton

    command = [triton.knobs.nvidia.cuobjdump.path, option, file]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _read_amd(compiled: Any) -> Row:
    code = compiled.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s*(\d+)", code)[-1])

    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        "spills": number("vgpr_spill_count"),
        "matrix_unit": _matrix_unit(code),
    }


def _matrix_unit(code: str) -> str | None:
    return next((name for name, pattern in MATRIX_INSTRUCTIONS.items() if re.search(pattern, code)), None)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


def compile_all(
    architectures: Sequence[str], package: str = "icckd.kernels", processes: int | None = None
) -> list[Row]:
    """A row for every compiled form of every kernel of `package`."""
    with process_pool(processes) as pool:
        names = pool.submit(modules, package).result()
        listed = {(name, arch): pool.submit(_count, name, arch) for arch in architectures for name in names}
        tasks = [(*task, k) for task, count in listed.items() for k in range(count.result())]
        futures = {pool.submit(_examine_kth, *task): task for task in tasks}
        for done, future in enumerate(as_completed(futures), 1):
            _show_progress(done, len(tasks), future)
        by_task = {task: future.result() for future, task in futures.items()}
    return [by_task[task] for task in tasks]


def process_pool(processes: int | None = None) -> ProcessPoolExecutor:
    """Processes in which Triton compiles, also where this one runs kernels in Triton's interpreter."""
    return ProcessPoolExecutor(
        processes or os.cpu_count(), multiprocessing.get_context("spawn"), initializer=_without_interpreter
    )


def _without_interpreter() -> None:
    os.environ.pop("TRITON_INTERPRET", None)


def _count(module: str, architecture: str) -> int:
    return len(distinct(module, architecture))


def _examine_kth(module: str, architecture: str, k: int) -> Row:
    form, description = distinct(module, architecture)[k]
    return {**examine(form, architecture), "description": description}


def _show_progress(done: int, total: int, future: Future[Row]) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total} {future.result()['kernel']:<40}", end="" if done < total else "\n", file=sys.stderr)
    elif done == total or done % max(1, total // 10) == 0:
        print(f"compiled {done} of {total}", file=sys.stderr, flush=True)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as lines of text."""
    yield f"{'kernel':<28}{'arch':<8}{'regs':>5}{'spills':>7}{'stack':>6}{'shared':>8}  {'matrix':<8} configuration"
    for row in rows:
        numbers = "".join(
            f"{row.get(name, '–'):>{width}}"
            for name, width in (("registers", 5), ("spills", 7), ("stack", 6), ("shared", 8))
        )
        config = row["config"] + (f"  ({row['description']})" if row["description"] else "")
        problem = f"  ← {row['problem']}" if row["problem"] else ""
        yield f"{row['kernel']:<28}{row['arch']:<8}{numbers}  {row.get('matrix_unit') or '–':<8} {config}{problem}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--arch", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all of them")
    parser.add_argument("--package", default="icckd.kernels", help="where to look for kernels (default: %(default)s)")
    parser.add_argument("--processes", type=int, help="how many compile at a time (default: one per processor)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args()
    rows = compile_all(options.arch, options.package, options.processes)
    print("\n".join(table(rows)))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    problems = [row for row in rows if row["problem"]]
    print(f"{len(rows)} compiled forms, {len(problems)} with a problem")
    return 1 if problems or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
