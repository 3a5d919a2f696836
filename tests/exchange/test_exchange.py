"""Rows spread over the ranks of process groups, against all rows in one process."""

from tests.distributed.processes import needs_gloo, run_together
from tests.exchange import (
    group_checks,
    network_checks,
    owner_checks,
    route_checks,
    spectral_checks,
    state_checks,
    supervised_checks,
)


@needs_gloo
def test_ranks_of_a_group(tmp_path):
    modules = (route_checks, owner_checks, supervised_checks, state_checks, network_checks)
    everywhere = [checks.every_check for checks in modules]
    of_three = [*everywhere, group_checks.every_check, spectral_checks.every_check]
    run_together(tmp_path, {2: everywhere, 3: of_three, 4: everywhere})
