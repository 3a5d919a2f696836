"""Builds the C++ extension `icckd._C` with ninja; everything else about the package is in pyproject.toml.

Environment variables:
    CXX                 the C++20 compiler (default: c++, g++ or clang++, the first that exists)
    ICCKD_NO_EXTENSION  1: install without the extension; the losses are then computed by PyTorch
    ICCKD_SANITIZE      e.g. address,undefined: build with these sanitizers (csrc/README.md)
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# A *_kernel.cpp is compiled once for each of these instruction sets; csrc/cpu/dispatch.h chooses at run time. The order
# is that of linking and matters: where two objects hold the same inline function the linker keeps the first, which must
# run anywhere.
INSTRUCTION_SETS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]

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


def find_compiler() -> str | None:
    candidates = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    return next((c for c in candidates if shutil.which(shlex.split(c)[0])), None)


def find_ninja() -> str | None:
    beside_python = shutil.which("ninja", path=Path(sys.executable).parent)
    return beside_python or shutil.which("ninja")


def why_no_extension() -> str | None:
    """None where the extension can be built, else why not."""
    if os.environ.get("ICCKD_NO_EXTENSION", "0") not in ("", "0"):
        return "ICCKD_NO_EXTENSION is set"
    if os.name != "posix":
        return "its build supports Linux and macOS only"
    if find_compiler() is None:
        return "there is no C++ compiler (looked for $CXX, c++, g++, clang++)"
    if find_ninja() is None:
        return "there is no ninja (pip install ninja)"
    return None


class NinjaBuild(build_ext):
    """Compiles what is out of date, each source with its own flags, into build/native."""

    def build_extension(self, ext: Extension) -> None:
        sanitizers = os.environ.get("ICCKD_SANITIZE", "")
        folder = ROOT / "build" / ("native" + (f"-{sanitizers.replace(',', '-')}" if sanitizers else ""))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(self._ninja_file(sanitizers))
        subprocess.run([find_ninja(), "-C", str(folder), *(["-v"] if self.verbose > 1 else [])], check=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a process may have the old file mapped: never write into it
        shutil.copy(folder / "_C.so", target)

    def _ninja_file(self, sanitizers: str) -> str:
        from torch.utils.cpp_extension import include_paths, library_paths

        sanitize = [f"-fsanitize={sanitizers}", "-fno-omit-frame-pointer", "-g"] if sanitizers else []
        includes = [f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in [*include_paths(), *self.include_dirs])]
        compile_flags = [*COMPILE_FLAGS, *sanitize, *includes]
        link_flags = [*sanitize, *(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch_cpu", "-ltorch"]
        if sys.platform == "darwin":
            link_flags.append("-Wl,-undefined,dynamic_lookup")
        lines = [
            "rule compile",
            f"  command = {find_compiler()} -MMD -MF $out.d {shlex.join(compile_flags)} $flags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {find_compiler()} -shared $in {shlex.join(link_flags)} -o $out",
        ]
        objects = []
        for source, instruction_set, flags in _compilations():
            objects.append(f"{source.stem}.{instruction_set}.o")
            lines += [f"build {objects[-1]}: compile {_escaped(source)}", f"  flags = {shlex.join(flags)}"]
        return "\n".join([*lines, f"build _C.so: link {' '.join(objects)}", ""])


def _compilations() -> Iterator[tuple[Path, str, list[str]]]:
    """Source, instruction set and its flags of every object file, in the order of linking."""
    sources = sorted((ROOT / "csrc").glob("*.cpp")) + sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    kernels = [source for source in sources if source.stem.endswith("_kernel")]
    yield from ((source, "once", []) for source in sources if source not in kernels)
    for instruction_set, flags in INSTRUCTION_SETS.items():
        yield from ((source, instruction_set, [f"-DICCKD_ISA={instruction_set}", *flags]) for source in kernels)


def _escaped(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


reason = why_no_extension()
if reason:
    print(
        f"icckd: installing without the C++ extension, because {reason}. Everything works, more slowly.",
        file=sys.stderr,
    )
setup(
    packages=find_packages(include=["icckd", "icckd.*"]),
    ext_modules=[] if reason else [Extension("icckd._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": NinjaBuild},
    options={} if reason else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
