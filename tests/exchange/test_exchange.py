"""Rows spread over the ranks of process groups, against all rows in one process."""

import traceback
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.exchange import gather_checks, network_checks, owner_checks, state_checks

WORLD = 4


class Here(NamedTuple):
    """This process in a group of the first `size` ranks."""

    group: dist.ProcessGroup
    rank: int
    size: int


def every_check(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    groups = {size: dist.new_group(range(size)) for size in (2, 3, 4)}
    pair = dist.new_group([0, 2])
    try:
        for size, group in groups.items():
            if rank < size:
                here = Here(group, rank, size)
                owner_checks.every_check(here)
                state_checks.every_check(here)
                network_checks.every_check(here)
                if size == gather_checks.WORLD:
                    gather_checks.every_check(here, pair)
    except BaseException:
        Path(folder, f"failure-{rank}").write_text(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch was built without gloo")
def test_ranks_of_a_group(tmp_path):
    # One start of processes for all checks: starting takes longer than checking.
    try:
        mp.spawn(every_check, args=(str(tmp_path),), nprocs=WORLD)
    except Exception as error:
        failures = "\n".join(path.read_text() for path in sorted(tmp_path.glob("failure-*")))
        raise AssertionError(failures) from error
