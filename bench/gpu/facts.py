"""What a device and its software are: for machine.json."""

import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

import torch

from icckd import backends
from icckd.bench import measure


@dataclass(frozen=True)
class Device:
    """architecture: "sm_90"; capability: "9.0"."""

    name: str
    architecture: str
    capability: str
    memory_bytes: int
    multiprocessors: int
    cache_bytes: int


def device_facts(device: torch.device) -> dict[str, Any]:
    """The device, what the driver says of it, and the versions of everything between it and a number."""
    return {
        **measure.conditions(device),
        "device": asdict(_device(device)),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit", "--format=csv"),
        "nvcc": _said("nvcc", "--version"),
    }


def _device(device: torch.device) -> Device:
    if device.type == "cpu":
        return Device("dry run, no device", "none", "0.0", 0, 0, 0)
    properties = torch.cuda.get_device_properties(device)
    return Device(
        properties.name,
        backends.architecture(device),
        f"{properties.major}.{properties.minor}",
        properties.total_memory,
        properties.multi_processor_count,
        properties.L2_cache_size,
    )


def _said(*command: str) -> str | None:
    """What a program prints; None where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
