"""The emulator that runs the CUDA kernels of csrc/cuda on the CPU: builds and loads a bind_*.cpp as a Python module.

    module = load("class_layout", "sm_90")      # bind_class_layout.cpp
    module.class_layout(labels, …, "late")      # tensors are global memory; see bind.h and emulator.h

Modules are built with ninja into build/emulator, each for one architecture, and only what is out of date.
"""

import fcntl
import functools
import importlib.util
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from torch.utils.cpp_extension import include_paths

# Without wgmma and with it, which is all that architectures differ in: for sm_100 kernels are what they are for sm_80.
ARCHITECTURES = ("sm_80", "sm_90")
TIMINGS = ("late", "early")

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
_FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fnon-call-exceptions", "-Wall", "-Wextra"]


def why_unavailable() -> str | None:
    """None where the emulator can be built, else why not."""
    if sys.platform != "linux":
        return "it is written for Linux"
    for tool in ("g++", _ninja()):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    return None


@functools.cache
def load(name: str, architecture: str) -> ModuleType:
    """The module of bind_NAME.cpp, whose kernels are compiled as for `architecture`."""
    module_name = f"{name}_{architecture}"
    folder = _ROOT / "build" / "emulator" / module_name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # against other processes that run tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(_ninja_file(name, module_name, architecture))
        result = subprocess.run([_ninja(), "-C", str(folder)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"bind_{name}.cpp does not compile for {architecture}:\n{result.stdout[-8000:]}")
    spec = importlib.util.spec_from_file_location(module_name, folder / f"{module_name}.so")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _ninja() -> str:
    return shutil.which("ninja", path=str(Path(sys.executable).parent)) or "ninja"


def _ninja_file(name: str, module_name: str, architecture: str) -> str:
    includes = [f"-I{_ROOT / 'csrc'}", f"-I{_HERE}"]
    includes += [f"-isystem{path}" for path in [*include_paths(), sysconfig.get_paths()["include"]]]
    defines = [f"-DICCKD_EMULATED={architecture.removeprefix('sm_')}", f"-DICCKD_MODULE_NAME={module_name}"]
    return f"""\
rule compile
  command = g++ -MMD -MF $out.d {shlex.join([*_FLAGS, *defines, *includes])} -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = g++ -shared $in -o $out
build emulator.o: compile {_HERE / "emulator.cpp"}
build bind.o: compile {_HERE / f"bind_{name}.cpp"}
build {module_name}.so: link emulator.o bind.o
"""
