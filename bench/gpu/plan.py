"""What a visit does when: its two parts, of stages that `bench.gpu.stages` runs.

`prove` lets stages overlap, since nothing is timed in it, and compiles for `measure` in what time is left. In `measure`
nothing runs beside a stage that measures time.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bench.gpu.stages import Visit

# The shares of a part's time in which the build, and the tests and checks, must be over.
_BUILD, _PROOF = 0.5, 0.85
# Of measuring: until when everything is compiled, until when the ceilings are known.
_COMPILED, _CEILINGS = 0.35, 0.5
# Tests are divided so that those of Triton run while the CUDA library is built.
_TRITON, _REST = "triton-cuda", "not triton-cuda"


def prove(doing: Visit, start: float, record: Callable[[], None]) -> bool:
    """Build, GPU tests, accuracy; whether there is a device."""
    seconds = doing.end - start
    if not doing.work("facts", start + _BUILD * seconds):
        return False
    record()
    processors = 2 if doing.dry_run else max(4, os.cpu_count() or 4)
    over = start + _PROOF * seconds
    with doing.recording(record), ThreadPoolExecutor() as pool:
        beside = [pool.submit(doing.tests, "triton", _TRITON, over, processors * 9 // 16)]
        doing.build(_capability(doing), start + _BUILD * seconds)
        beside.append(pool.submit(doing.tests, "rest", _REST, over, max(1, processors * 5 // 16)))
        beside.append(pool.submit(doing.share, "accuracy", over, max(1, processors * 5 // 16)))
        for future in beside:
            future.result()
        record()
        # The dry run's kernels are interpreted.
        for stage in () if doing.dry_run else ("compile", "compile_all"):
            doing.share(stage, doing.end, processors // 2)
    return True


def measure(doing: Visit, start: float, record: Callable[[], None]) -> bool:
    """Ceilings, the project's kernels on every target, then everybody on every case; whether there is a device."""
    seconds = doing.end - start
    compiled = start + _COMPILED * seconds
    with doing.recording(record):
        with ThreadPoolExecutor() as pool:
            compiling = pool.submit(doing.share, "compile", compiled, 2 if doing.dry_run else 8)
            if not doing.work("facts", compiled):
                return False
            doing.build(_capability(doing), start + _BUILD * seconds)
            compiling.result()
        for stage, until in (("ceilings", start + _CEILINGS * seconds), ("speed", doing.end), ("peers", doing.end)):
            doing.work(stage, until)
            record()
    return True


PARTS = {"prove": prove, "measure": measure}


def _capability(doing: Visit) -> str:
    return json.loads((doing.output / "machine.json").read_text())["device"]["capability"]
