"""Processes of one machine that run a check together, each with its World."""

import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from icckd.distributed import Launch, World

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch was built without gloo"
)


def run_in(size, folder, check, *arguments):
    """Call `check(world, *arguments)` in `size` connected processes; what fails in any of them fails here."""
    try:
        mp.spawn(_run, args=(size, str(folder), check, arguments), nprocs=size)
    except Exception as error:
        failures = "\n".join(path.read_text() for path in sorted(Path(folder).glob("failure-*")))
        raise AssertionError(failures or str(error)) from error


def _run(rank, size, folder, check, arguments):
    torch.set_num_threads(1)
    world = World(Launch(rank, size, rank), dist.FileStore(f"{folder}/store", size))
    world.connect(torch.device("cpu"))
    try:
        check(world, *arguments)
    except BaseException:
        Path(folder, f"failure-{rank}").write_text(traceback.format_exc())
        raise
    finally:
        world.disconnect()
