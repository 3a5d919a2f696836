"""What several processes compute together, all checks in processes that are started once."""

from functools import partial

from tests.distributed import batch_norm_checks, run_checks, step_checks
from tests.distributed.processes import needs_gloo, run_together


@needs_gloo
def test_processes_do_together_what_one_does(tmp_path):
    run_together(
        tmp_path,
        {
            2: [
                step_checks.check_every_task,
                step_checks.check_nothing_waits,
                partial(run_checks.check_runs, tmp_path),
                partial(run_checks.check_divergence, tmp_path),
            ],
            3: [
                batch_norm_checks.check_outputs_gradients_and_statistics,
                batch_norm_checks.check_statistics_stay_where_they_should,
                step_checks.check_replicas_of_three,
                partial(run_checks.check_continued_by_more, tmp_path),
                partial(run_checks.check_resumed_in_the_same_bits, tmp_path),
                run_checks.check_probe,
                run_checks.check_attack,
            ],
            4: [step_checks.check_parts_of_four],
        },
    )
