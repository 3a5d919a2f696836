"""What a result was computed with: versions, device, processor, date; and what memory is free."""

import datetime
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from icckd.version import __version__

_PACKAGES = ("numpy", "triton", "jsonargparse", "safetensors", "rich", "scikit-learn", "matplotlib", "pillow")


def versions() -> dict[str, str]:
    """The versions that decide what a model file means."""
    return {"icckd": __version__, "torch": torch.__version__, "python": platform.python_version()}


def describe(device: torch.device) -> dict[str, Any]:
    """The environment of a run on `device`, for summary.json."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        **versions(),
        "device": f"{device.type}: {name}",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that icckd uses, None for one that is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def free_memory(device: torch.device) -> float:
    """Bytes that this process may still take on `device`; infinitely many where the system does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return float("inf")
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return 1024 * kilobytes[0] if kilobytes else float("inf")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
