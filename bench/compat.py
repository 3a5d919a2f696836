"""Compiles everything for the oldest versions that it is meant for, without a GPU: `make compat`.

    C++ and CUDA C++   every object file, with setup.py's flags, against the headers of each LibTorch in TORCH
    names              whether that LibTorch's own libraries have every function of its that the objects call
    Triton kernels     every compiled form for Hopper, by each compiler in TRITON: bench.aot, which also finds spills

Headers come from the wheels that pip downloads, about a gigabyte each, of which 60 MB stay in build/compat. Only what
is out of date is done again. The names in the oldest headers are written to tests/csrc/stable_names.txt, which a test
holds the sources against. Exit status 1 where something does not compile, calls what is not there, or spills.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import setup

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "compat"
NAMES = ROOT / "tests" / "csrc" / "stable_names.txt"
# The oldest that pyproject.toml allows, and that of the GPUs at hand; each oldest first.
TORCH = ("2.10.0", "2.11.0")
TRITON = ("3.6.0",)
CUDA_ARCHITECTURE, TRITON_ARCHITECTURE = "9.0a", "sm_90"
# Where LibTorch's stable API is, and the libraries that hold it.
STABLE_HEADERS = ("torch/headeronly", "torch/csrc/stable", "torch/csrc/inductor/aoti_torch/c")
LIBRARIES = ("torch/lib/libc10.so", "torch/lib/libtorch_cpu.so", "torch/lib/libtorch_cuda.so")
STABLE_FUNCTION = re.compile(r"\b(?:aoti_)?torch_\w+")
# Row and version → what is wrong with it, or None.
Outcomes = dict[str, dict[str, str | None]]


def stable_names(include: Path) -> set[str]:
    """The macros, C functions, namespaces, types and functions that the stable headers in a folder define."""
    names: set[str] = set()
    for path in (path for folder in STABLE_HEADERS for path in (include / folder).rglob("*.h")):
        code = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        names.update(re.findall(r"#\s*define\s+(\w*TORCH_\w+)", code))
        names.update(STABLE_FUNCTION.findall(code))
        names.update(re.findall(r"\b(?:class|struct|namespace|using)\s+([A-Za-z]\w+)", code))
        names.update(re.findall(r"\binline\b[^;{}()]*?\b([a-z]\w+)\(", code))
        for spaces in re.findall(r"\bHIDDEN_NAMESPACE_BEGIN\(([^)]*)\)", code):
            names.update(re.findall(r"\w+", spaces))
    return names


def undefined_names(file: Path) -> set[str]:
    """LibTorch's C functions that an object file or a library expects elsewhere."""
    return _functions(file, "--undefined-only")


def _functions(file: Path, which: str) -> set[str]:
    command = ["nm", which, *(["--dynamic"] if file.suffix == ".so" else []), str(file)]
    return set(STABLE_FUNCTION.findall(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def fetch_torch(version: str) -> Path:
    """The folder of this LibTorch's headers, `include`, and of what its libraries define, `functions.json`."""
    folder = FOLDER / f"torch-{version}"
    if not folder.exists():
        with _filled_at_once(folder) as new:
            _pip("download", "--no-cache-dir", "--dest", str(new), f"torch=={version}")
            (wheel,) = new.glob("*.whl")
            functions: set[str] = set()
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.startswith("torch/include/"):
                        archive.extract(name, new)
                    elif name in LIBRARIES:
                        functions |= _functions(Path(archive.extract(name, new)), "--defined-only")
            (new / "torch" / "include").rename(new / "include")
            shutil.rmtree(new / "torch")
            wheel.unlink()
            (new / "functions.json").write_text(json.dumps(sorted(functions)))
    return folder


def fetch_triton(version: str) -> Path:
    """A folder with this Triton, for PYTHONPATH."""
    folder = FOLDER / f"triton-{version}"
    if not folder.exists():
        with _filled_at_once(folder) as new:
            _pip("install", "--target", str(new), f"triton=={version}")
    return folder


@contextmanager
def _filled_at_once(folder: Path) -> Iterator[Path]:
    """A new folder that gets its name when it has been filled, so that one by that name is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as new:
        content = Path(new) / folder.name
        content.mkdir()
        yield content
        content.rename(folder)


def _pip(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", command, "--no-deps", *arguments], check=True)


def objects(version: str) -> dict[str, str]:
    """The object files for this LibTorch by what they are called in the table: their names in ninja's file."""
    compilations = (*setup.compilations(), *setup.cuda_compilations())
    return {
        f"{source.parent.name}/{Path(name).stem}": f"torch-{version}.objects/{name}" for name, source, _ in compilations
    }


def ninja_file() -> str:
    """What to compile: all sources for each LibTorch, all kernels by each Triton."""
    lines = []
    for version in TORCH:
        include = fetch_torch(version) / "include"
        includes = [str(include), str(include / "torch" / "csrc" / "api" / "include")]
        folder = f"torch-{version}.objects/"
        lines += setup.compile_rule(f"cpp-{version}", includes)
        lines += setup.compile_lines(f"cpp-{version}", folder, setup.compilations())
        lines += setup.cuda_compile_rule(f"nvcc-{version}", includes, CUDA_ARCHITECTURE)
        lines += setup.compile_lines(f"nvcc-{version}", folder, setup.cuda_compilations())
    inputs = [ROOT / "bench" / "aot.py", *sorted((ROOT / "kernels").rglob("*.py"))]
    for version in TRITON:
        lines += _triton_rule(f"triton-{version}", fetch_triton(version))
        lines.append(f"build triton-{version}.stamp: triton-{version} {' '.join(map(setup.escaped, inputs))}")
    return "\n".join([*lines, ""])


def _triton_rule(name: str, folder: Path) -> list[str]:
    """ninja's rule that examines all kernels by the Triton in a folder; touches its output if there are no problems."""
    aot = [sys.executable, "-m", "bench.aot", "--arch", TRITON_ARCHITECTURE, "--json", str(FOLDER / f"{name}.json")]
    steps = [
        f"cd {shlex.quote(str(ROOT))}",
        f"PYTHONPATH={shlex.quote(str(folder))} {shlex.join(aot)} > {shlex.quote(str(FOLDER / f'{name}.txt'))}",
        f"touch {shlex.quote(str(FOLDER))}/$out",
    ]
    return [f"rule {name}", f"  command = {' && '.join(steps)}", "  pool = console"]


def compile_all() -> set[str]:
    """Compile what is out of date; what of it failed, by its name in ninja's file."""
    (FOLDER / "build.ninja").write_text(ninja_file())
    command = [setup.find_ninja(), "-C", str(FOLDER), "-k", "0"]
    failed: set[str] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            if match := re.match(r"FAILED: (?:\[code=\d+\] )?(.+)", line):
                failed.update(match[1].split())
    if process.returncode and not failed:
        sys.exit(f"ninja fails: exit status {process.returncode}")
    return failed


def torch_outcomes(failed: set[str]) -> Outcomes:
    """What became of every object file, and of the names that it needs."""
    outcomes: Outcomes = {}
    for version in TORCH:
        there = set(json.loads((FOLDER / f"torch-{version}" / "functions.json").read_text()))
        for label, name in objects(version).items():
            problem = None
            if name in failed:
                problem = "does not compile"
            elif missing := undefined_names(FOLDER / name) - there:
                problem = f"lacks {', '.join(sorted(missing))}"
            outcomes.setdefault(label, {})[f"torch {version}"] = problem
    return outcomes


def triton_outcomes() -> Outcomes:
    """What became of every kernel: the problems of its forms, each once."""
    outcomes: Outcomes = {}
    for version in TRITON:
        problems: dict[str, list[str]] = {}
        for row in json.loads((FOLDER / f"triton-{version}.json").read_text()):
            problems.setdefault(row["kernel"], []).extend([row["problem"]] if row["problem"] else [])
        for kernel, found in problems.items():
            outcomes.setdefault(kernel, {})[f"Triton {version}"] = "; ".join(dict.fromkeys(found)) or None
    return outcomes


def table(outcomes: Outcomes) -> Iterator[str]:
    """The outcomes as lines of text."""
    versions = list(next(iter(outcomes.values())))
    yield f"{'':<34}" + "".join(f"{version:<24}" for version in versions)
    for name, by_version in outcomes.items():
        yield f"{name:<34}" + "".join(f"{by_version[version] or 'ok':<24}" for version in versions)


def write_names() -> None:
    """The names in the oldest headers, for the test that the sources use no other."""
    names = sorted(stable_names(fetch_torch(TORCH[0]) / "include"))
    head = f"# What the stable headers of LibTorch {TORCH[0]} define, written by bench.compat."
    NAMES.write_text("\n".join([head, *names, ""]))


def main() -> int:
    """Compile, print what became of it, and write down the oldest names."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    ).parse_args()
    if setup.find_nvcc() is None:
        sys.exit("bench.compat needs nvcc (it looked in $CUDA_HOME/bin and $PATH)")
    failed = compile_all()
    write_names()
    outcomes = [torch_outcomes(failed), triton_outcomes()]
    for part in outcomes:
        print("\n".join(["", *table(part)]))
    problems = [problem for part in outcomes for row in part.values() for problem in row.values() if problem]
    print(f"\n{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
