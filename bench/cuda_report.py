"""Reads the machine code of the CUDA kernels that `setup.py` has compiled: `make cuda`. No GPU is needed.

    kernel       name and template arguments
    arch         architecture that the code is for
    registers    of a thread
    stack        bytes of a thread's local memory
    spills       instructions that store or load there
    shared       bytes of static shared memory: 1024 of the system's from sm_90 on; a launch says how much more
    instructions those of csrc/cuda/instructions.yaml that the code should hold, and holds

Exit status 1 where a kernel spills, lacks an instruction that it should hold, or the list names a kernel that is not
there.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
# Kernel name, with wildcards → architecture → opcodes, as regular expressions.
Expectations = dict[str, dict[str, list[str]]]


class Kernel(NamedTuple):
    """One kernel's machine code for one architecture."""

    name: str
    arch: str
    registers: int
    stack: int
    shared: int
    opcodes: list[str]

    @property
    def spills(self) -> int:
        return sum(opcode.startswith(("LDL", "STL")) for opcode in self.opcodes)


def parse_usage(text: str) -> Iterator[tuple[str, str, int, int, int]]:
    """Mangled name, architecture, registers, stack and shared memory, from `cuobjdump --dump-resource-usage`."""
    arch = function = ""
    for line in text.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            function = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            registers, stack, shared = map(int, match.groups())
            yield function, arch, registers, stack, shared


def parse_opcodes(text: str) -> dict[tuple[str, str], list[str]]:
    """The opcodes of every mangled name and architecture, from `cuobjdump -sass`."""
    opcodes: dict[tuple[str, str], list[str]] = {}
    arch = ""
    current: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            current = opcodes.setdefault((match[1], arch), [])
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)", line):
            current.append(match[1])
    return opcodes


def short_name(demangled: str) -> str:
    """`kernel<float, 32>` of `void icckd::cuda::(anonymous namespace)::kernel<float, 32>(icckd::cuda::Params)`."""
    name = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\bicckd::(cuda::)?", "", name.rpartition("(")[0] or name)


def read_kernels(objects: Sequence[Path]) -> list[Kernel]:
    """The kernels of object files."""
    kernels = []
    for path in objects:
        opcodes = parse_opcodes(_run(_cuobjdump(), "-sass", str(path)))
        for mangled, arch, *numbers in parse_usage(_run(_cuobjdump(), "--dump-resource-usage", str(path))):
            kernels.append(Kernel(mangled, arch, *numbers, opcodes.get((mangled, arch), [])))
    demangled = _run("c++filt", *(kernel.name for kernel in kernels)).splitlines()
    named = [kernel._replace(name=short_name(name)) for kernel, name in zip(kernels, demangled, strict=True)]
    return sorted(named, key=lambda kernel: (kernel.name, int(re.sub(r"\D", "", kernel.arch))))


def expected_opcodes(kernel: Kernel, expectations: Expectations) -> list[str]:
    """The opcodes that the list wants of this kernel."""
    matching = [of_arch for pattern, of_arch in expectations.items() if fnmatchcase(kernel.name, pattern)]
    return [opcode for of_arch in matching for opcode in of_arch.get(kernel.arch, [])]


def faults(kernels: Sequence[Kernel], expectations: Expectations) -> Iterator[str]:
    """What is wrong with them, a line each."""
    for kernel in kernels:
        where = f"{kernel.name} on {kernel.arch}"
        if kernel.spills or kernel.stack:
            yield f"{where} keeps {kernel.stack} bytes on the stack, with {kernel.spills} instructions"
        for opcode in expected_opcodes(kernel, expectations):
            if not _holds(kernel, opcode):
                yield f"{where} has no {opcode}"
    for pattern in expectations:
        if not any(fnmatchcase(kernel.name, pattern) for kernel in kernels):
            yield f"there is no kernel {pattern}, which instructions.yaml names"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cuda_report", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("objects", nargs="*", type=Path, help="object files (default: those of build/cuda)")
    parser.add_argument("--expectations", type=Path, default=ROOT / "csrc" / "cuda" / "instructions.yaml")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args(arguments)
    objects = options.objects or sorted((ROOT / "build" / "cuda").glob("*.o"))
    if not objects:
        parser.error("there are no object files in build/cuda; `make cuda` compiles them")
    expectations = yaml.safe_load(options.expectations.read_text())
    kernels = read_kernels(objects)
    rows = [_row(kernel, expectations) for kernel in kernels]
    _print_table(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    wrong = list(faults(kernels, expectations))
    for line in wrong:
        print(f"cuda_report: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _row(kernel: Kernel, expectations: Expectations) -> dict[str, str | int]:
    found = [opcode for opcode in expected_opcodes(kernel, expectations) if _holds(kernel, opcode)]
    return {
        "kernel": kernel.name,
        "arch": kernel.arch,
        "registers": kernel.registers,
        "stack": kernel.stack,
        "spills": kernel.spills,
        "shared": kernel.shared,
        "instructions": " ".join(found),
    }


def _holds(kernel: Kernel, opcode: str) -> bool:
    return any(re.match(opcode, found) for found in kernel.opcodes)


def _print_table(rows: list[dict[str, str | int]]) -> None:
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    for row in [dict(zip(widths, widths, strict=True)), *rows]:
        cells = (
            f"{cell:>{widths[name]}}" if isinstance(cell, int) else f"{cell:<{widths[name]}}"
            for name, cell in row.items()
        )
        print("  ".join(cells).rstrip())


def _cuobjdump() -> str:
    """nvcc's, or Triton's own."""
    if found := shutil.which("cuobjdump"):
        return found
    import triton

    return triton.knobs.nvidia.cuobjdump.path


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
