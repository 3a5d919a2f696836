"""Builds the C++ extension `icckd._C` and the CUDA library `icckd/_cuda.so` with ninja; the rest is in pyproject.toml.

The CUDA library is a file of its own, because it can only be used where PyTorch has CUDA. It can be built wherever nvcc
is, without a GPU too, and against a PyTorch without CUDA, which has no use for it: there it is built on demand.

Environment variables:
    CXX                  the C++20 compiler (default: c++, g++ or clang++, the first that exists)
    ICCKD_NO_EXTENSION   1: install without the extension; the losses are then computed by PyTorch
    ICCKD_SANITIZE       e.g. address,undefined: build with these sanitizers (csrc/README.md)
    ICCKD_CUDA           1: build the CUDA library whatever PyTorch this is, and fail where that fails
    ICCKD_NO_CUDA        1: never build it
    ICCKD_DEBUG          1: CUDA kernels check their bounds, and know the lines of their source
    TORCH_CUDA_ARCH_LIST what to build it for (default: 8.0;9.0a;10.0a+PTX)
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import setuptools
from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
# Older ones cannot read the licence in pyproject.toml, and refuse all of it.
OLDEST_SETUPTOOLS = 77

# A *_kernel.cpp is compiled once for each of these instruction sets; csrc/cpu/dispatch.h chooses at run time. The order
# is that of linking and matters: where two objects hold the same inline function the linker keeps the first, which must
# run anywhere.
INSTRUCTION_SETS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512_bf16"] = [*INSTRUCTION_SETS["avx512"], "-mavx512bf16"]

# The stable ABIs of LibTorch 2.10 and CPython 3.10: one file serves these and all later versions.
STABLE_ABIS = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000"]
COMPILE_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    *STABLE_ABIS,
]

CUDA_ARCHITECTURES = "8.0;9.0a;10.0a+PTX"
CUDA_FLAGS = [
    "-std=c++20",
    "-O3",
    # GCC 12 takes an optional's unused content for uninitialised.
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wno-maybe-uninitialized",
    "-DUSE_CUDA",
    STABLE_ABIS[0],
]


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "0") not in ("", "0")


def find_compiler() -> str | None:
    candidates = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    return next((c for c in candidates if shutil.which(shlex.split(c)[0])), None)


def find_ninja() -> str | None:
    beside_python = shutil.which("ninja", path=Path(sys.executable).parent)
    return beside_python or shutil.which("ninja")


def why_no_extension() -> str | None:
    """None where the extension can be built, else why not."""
    if is_set("ICCKD_NO_EXTENSION"):
        return "ICCKD_NO_EXTENSION is set"
    if os.name != "posix":
        return "its build supports Linux and macOS only"
    if find_compiler() is None:
        return "there is no C++ compiler (looked for $CXX, c++, g++, clang++)"
    if find_ninja() is None:
        return "there is no ninja (pip install ninja)"
    return None


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return (home and shutil.which("nvcc", path=Path(home) / "bin")) or shutil.which("nvcc")


def why_no_cuda() -> str | None:
    """None where the CUDA library should be built, else why not."""
    if is_set("ICCKD_NO_CUDA"):
        return "ICCKD_NO_CUDA is set"
    if sys.platform != "linux":
        return "its build supports Linux only"
    if find_nvcc() is None:
        return "there is no nvcc (looked in $CUDA_HOME/bin and $PATH)"
    if find_ninja() is None:
        return "there is no ninja (pip install ninja)"
    if is_set("ICCKD_CUDA"):
        return None
    import torch

    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA (ICCKD_CUDA=1 builds it all the same)"
    return None


def why_no_kernels() -> str | None:
    """None where icckd/kernels leads to the kernels, else why not."""
    if (ROOT / "icckd" / "kernels" / "__init__.py").exists():
        return None
    return "icckd/kernels is no link to ../kernels in this copy of the tree (ln -sfn ../kernels icckd/kernels)"


def architecture_flags(architectures: str) -> list[str]:
    """nvcc's flags for versions such as "8.0;9.0a;10.0a+PTX": machine code for each, and PTX for later ones."""
    flags = []
    for name in re.split(r"[;,\s]+", architectures.strip("; ,")):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if not match:
            raise CompileError(f"TORCH_CUDA_ARCH_LIST holds {name!r}; it should hold versions such as 9.0a or 10.0+PTX")
        major, minor, suffix, ptx = match.groups()
        flags.append(f"-gencode=arch=compute_{major}{minor}{suffix},code=sm_{major}{minor}{suffix}")
        if ptx:  # without the suffix, whose PTX would run on this version alone
            flags.append(f"-gencode=arch=compute_{major}{minor},code=compute_{major}{minor}")
    return flags


class NinjaBuild(build_ext):
    """Compiles what is out of date, each source with its own flags, into build/native and build/cuda."""

    def get_ext_filename(self, fullname: str) -> str:
        if not fullname.endswith("_cuda"):
            return super().get_ext_filename(fullname)
        return os.path.join(*fullname.split(".")) + ".so"  # no Python module: nothing of Python's version in its name

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "icckd._cuda":
            folder = ROOT / "build" / ("cuda-debug" if is_set("ICCKD_DEBUG") else "cuda")
            ninja_file = _cuda_ninja_file()
        else:
            sanitizers = os.environ.get("ICCKD_SANITIZE", "")
            folder = ROOT / "build" / ("native" + (f"-{sanitizers.replace(',', '-')}" if sanitizers else ""))
            ninja_file = _ninja_file(sanitizers)
        target = Path(self.get_ext_fullpath(ext.name))
        # A process may have the old file mapped: never write into it. And none is better than that of other sources.
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file)
        try:
            subprocess.run([find_ninja(), "-C", str(folder), *(["-v"] if self.verbose > 1 else [])], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(f"{ext.name} does not compile; the compiler's messages are above") from error
        shutil.copy(folder / f"{ext.name.split('.')[-1]}.so", target)


def compile_rule(name: str, includes: Sequence[str], sanitize: Sequence[str] = ()) -> list[str]:
    """ninja's rule that compiles C++ against the headers in these folders."""
    python = sysconfig.get_path("include")
    folders = [f"-I{ROOT / 'csrc'}", *(f"-isystem{folder}" for folder in (*includes, python))]
    flags = [*COMPILE_FLAGS, *sanitize, *folders]
    return [
        f"rule {name}",
        f"  command = {find_compiler()} -MMD -MF $out.d {shlex.join(flags)} $flags -c $in -o $out",
        "  description = c++ $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]


def cuda_compile_rule(name: str, includes: Sequence[str], architectures: str) -> list[str]:
    """ninja's rule that compiles CUDA C++ for these architectures against the headers in these folders."""
    debug = ["-DICCKD_DEBUG=1", "-lineinfo"] if is_set("ICCKD_DEBUG") else []
    folders = [f"-I{ROOT / 'csrc'}", *(f"-isystem={folder}" for folder in includes)]
    flags = [*CUDA_FLAGS, *debug, *architecture_flags(architectures), *folders]
    return [
        f"rule {name}",
        f"  command = {find_nvcc()} -MD -MF $out.d {shlex.join(flags)} $flags -c $in -o $out",
        "  description = nvcc $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]


def compilations() -> Iterator[tuple[str, Path, list[str]]]:
    """Name, source and flags of its own of every object file of the extension, in the order of linking."""
    sources = sorted((ROOT / "csrc").glob("*.cpp")) + sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    kernels = [source for source in sources if source.stem.endswith("_kernel")]
    yield from ((f"{source.stem}.once.o", source, []) for source in sources if source not in kernels)
    for name, flags in INSTRUCTION_SETS.items():
        yield from ((f"{source.stem}.{name}.o", source, [f"-DICCKD_ISA={name}", *flags]) for source in kernels)


def cuda_compilations() -> Iterator[tuple[str, Path, list[str]]]:
    """The same of the CUDA library."""
    yield from ((f"{source.stem}.o", source, []) for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")))


def compile_lines(rule: str, folder: str, objects: Iterable[tuple[str, Path, list[str]]]) -> Iterator[str]:
    """What makes ninja compile these objects into a folder by `rule`."""
    for name, source, flags in objects:
        yield f"build {folder}{name}: {rule} {escaped(source)}"
        yield f"  flags = {shlex.join(flags)}"


def _ninja_file(sanitizers: str) -> str:
    from torch.utils.cpp_extension import include_paths, library_paths

    sanitize = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g"] if sanitizers else []
    link_flags = [*sanitize, *(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch_cpu", "-ltorch"]
    if sys.platform == "darwin":
        link_flags.append("-Wl,-undefined,dynamic_lookup")
    lines = [
        *compile_rule("compile", include_paths(), sanitize),
        "rule link",
        f"  command = {find_compiler()} -shared $in {shlex.join(link_flags)} -o $out",
        *compile_lines("compile", "", compilations()),
        f"build _C.so: link {' '.join(name for name, *_ in compilations())}",
    ]
    return "\n".join([*lines, ""])


def _cuda_ninja_file() -> str:
    from torch.utils.cpp_extension import include_paths, library_paths

    # A PyTorch without CUDA has no libtorch_cuda to link with. The library then finds the names in it through libtorch,
    # which needs libtorch_cuda wherever there is one.
    present = {path.stem for folder in library_paths() for path in Path(folder).glob("lib*.so")}
    libraries = [name for name in ("c10", "torch_cpu", "torch", "torch_cuda") if f"lib{name}" in present]
    link_flags = ["-cudart=static", "-Xlinker=--no-as-needed"]
    link_flags += [*(f"-L{path}" for path in library_paths()), *(f"-l{name}" for name in libraries)]
    lines = [
        *cuda_compile_rule("compile", include_paths(), os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES),
        "rule link",
        f"  command = {find_nvcc()} -shared $in {shlex.join(link_flags)} -o $out",
        "  description = nvcc -shared $out",
        *compile_lines("compile", "", cuda_compilations()),
        f"build _cuda.so: link {' '.join(name for name, *_ in cuda_compilations())}",
    ]
    return "\n".join([*lines, ""])


def escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class BuildOnly(Distribution):
    """For `build_ext` by itself, which needs nothing that pyproject.toml says."""

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        pass


def main() -> None:
    why_not = {
        "C++ extension": why_no_extension(),
        "CUDA library": why_no_cuda(),
        "Triton kernels": why_no_kernels(),
    }
    for part, reason in why_not.items():
        if reason:
            print(f"icckd: installing without the {part}, because {reason}.", file=sys.stderr)
    extensions = []
    if not why_not["C++ extension"]:
        extensions.append(Extension("icckd._C", sources=[], py_limited_api=True))
    if not why_not["CUDA library"]:
        # Where it fails to compile and nobody asked for it, the installation goes on without.
        extensions.append(Extension("icckd._cuda", sources=[], py_limited_api=True, optional=not is_set("ICCKD_CUDA")))
    too_old = int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS
    if too_old and "build_ext" not in sys.argv:
        sys.exit(
            f"icckd: installing needs setuptools {OLDEST_SETUPTOOLS} or newer, and this is {setuptools.__version__} "
            "(pip install --upgrade setuptools); `python setup.py build_ext --inplace` works with this one too"
        )
    setup(
        distclass=BuildOnly if too_old else Distribution,
        packages=find_packages(include=["icckd", "icckd.*"]),
        ext_modules=extensions,
        cmdclass={"build_ext": NinjaBuild},
        options={"bdist_wheel": {"py_limited_api": "cp310"}} if extensions else {},
    )


if __name__ == "__main__":
    main()
