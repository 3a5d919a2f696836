"""The C library's heap, which may keep what PyTorch has given back.

Steps take and free blocks of megabytes. glibc 2.36 has been seen to leave free ones of 0.5 to 42 MB unused and to
extend the heap for the next, now and then: by gigabytes within minutes, until the system ended the process.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

# So much beyond what is in use may stay: blocks are taken again soon, and pages that were given back take time anew.
SPARE = 2**30
_STATM = Path("/proc/self/statm")


class _Mallinfo2(ctypes.Structure):
    """glibc's struct of this name: bytes, of which `uordblks` are in use in the heap and `hblkhd` are mapped beside."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def trim_heap() -> None:
    """Give free pages back where the process holds SPARE bytes more than are in use; Linux with glibc ≥ 2.33 only."""
    library = _glibc()
    if library is None:
        return
    used = library.mallinfo2()
    held = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if held - used.uordblks - used.hblkhd > SPARE:
        library.malloc_trim(ctypes.c_size_t(0))


@cache
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.mallinfo2.restype = _Mallinfo2
    except (AttributeError, OSError, TypeError):  # Another C library, or an older one; Windows has no such handle.
        return None
    return library if _STATM.exists() else None
