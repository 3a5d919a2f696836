"""Rows spread over the ranks of process groups, against all rows in one process."""

from typing import NamedTuple

import torch.distributed as dist

from tests.distributed.processes import needs_gloo, run_together
from tests.exchange import gather_checks, network_checks, owner_checks, route_checks, state_checks


class Here(NamedTuple):
    """This process among the ranks of a group."""

    group: dist.ProcessGroup
    rank: int
    size: int


def every_check(world):
    here = Here(world.group, world.rank, world.size)
    for checks in (route_checks, owner_checks, state_checks, network_checks):
        checks.every_check(here)
    if world.size == gather_checks.WORLD:
        gather_checks.every_check(here, pair=dist.new_group([0, 2]))


@needs_gloo
def test_ranks_of_a_group(tmp_path):
    run_together(tmp_path, {size: [every_check] for size in (2, 3, 4)})
