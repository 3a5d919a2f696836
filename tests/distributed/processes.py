"""Processes of one machine that run checks together, each with its World."""

import multiprocessing
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from icckd.distributed import Launch, World

SERVER = multiprocessing.get_context("forkserver")
# What takes long to import, once for all processes of all tests.
SERVER.set_forkserver_preload(
    [
        *("icckd.cli.commands", "icckd.experiment", "icckd.distributed.replicas", "icckd.distributed.batch_norm"),
        *("torch.distributed.checkpoint.state_dict", "torch._dynamo", "pytest", "tests.distributed.jobs"),
    ]
)
needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch was built without gloo"
)


def run_together(folder, checks):
    """Call `check(world)` for each of `checks[size]`, in so many connected processes; what fails in any fails here.

    They are started once for all sizes: starting takes longer than most checks.
    """
    try:
        mp.start_processes(_run, args=(str(folder), checks), nprocs=max(checks), start_method="forkserver")
    except Exception as error:
        failures = "\n".join(path.read_text() for path in sorted(Path(folder).glob("failure-*")))
        raise AssertionError(failures or str(error)) from error


def _run(rank, folder, checks):
    torch.set_num_threads(1)
    try:
        for size in sorted(checks):
            if rank < size:
                _run_in(size, rank, folder, checks[size])
    except BaseException:
        Path(folder, f"failure-{rank}").write_text(traceback.format_exc())
        raise


def _run_in(size, rank, folder, checks):
    world = World(Launch(rank, size, rank), dist.FileStore(f"{folder}/store-{size}", size))
    world.connect(torch.device("cpu"))
    for check in checks:
        check(world)
    world.disconnect()
