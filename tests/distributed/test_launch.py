"""Who this process is, by the variables of launchers; nothing is started."""

import re

import pytest

from icckd.distributed import Launch, launched
from icckd.distributed.launch import first_host
from icckd.errors import UserError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "one",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_MAX_RESTARTS": "3",
}
SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_nothing_set_is_one_process():
    assert launched({}) == Launch()
    # A batch script, or a step of one task, has these too.
    alone = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_NUM_TASKS"}
    assert launched({**alone, "SLURM_NTASKS": "8"}) == launched({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) == Launch()


def test_torchruns_variables():
    launch = launched(TORCHRUN)
    assert launch == Launch(5, 8, 1, "one", 29500, one_host=False, restarts=3, launcher="torchrun")
    assert launched({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}).restarted
    assert launched({**TORCHRUN, "LOCAL_WORLD_SIZE": "8"}).one_host
    # srun may start torchrun.
    assert launched({**SRUN, **TORCHRUN}) == launch


def test_sruns_variables():
    launch = launched(SRUN)
    assert (launch.rank, launch.size, launch.local_rank, launch.address) == (5, 8, 1, "node07")
    assert (launch.one_host, launch.restarted, launch.launcher) == (False, False, "srun")
    assert launched({**SRUN, "SLURM_RESTART_COUNT": "1"}).restarted
    assert launched({**SRUN, "SLURM_STEP_NUM_NODES": "1"}).one_host
    given = launched({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "4000"})
    assert (given.address, given.port) == ("head", 4000)


def test_steps_and_jobs_meet_at_different_ports_that_any_user_may_open():
    ports = {
        launched({**SRUN, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}).port
        for job in (123456, 123457)
        for step in range(5)
    }
    assert len(ports) == 10
    assert all(1024 < port < 32768 for port in ports)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node1", "node1"),
        ("node[01-04,07],other", "node01"),
        ("node[3,7-9]", "node3"),
        ("a-b,c", "a-b"),
        ("rack[1-2]node[05-06].site,x", "rack1node05.site"),
    ],
)
def test_the_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "8"}, "the variable RANK is 8 and WORLD_SIZE is 8"),
        ({"RANK": "-1"}, "the variable RANK is '-1'; it should be a whole number"),
        ({"WORLD_SIZE": "many"}, "the variable WORLD_SIZE is 'many'"),
        ({"LOCAL_RANK": "6"}, "the variable LOCAL_RANK is 6 and RANK is 5"),
        ({"MASTER_PORT": "70000"}, "the variable MASTER_PORT is 70000"),
        ({"MASTER_PORT": None, "LOCAL_RANK": None}, "RANK and WORLD_SIZE set, but LOCAL_RANK, MASTER_PORT not"),
        ({"WORLD_SIZE": None}, "RANK set, but WORLD_SIZE not"),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "the variable TORCHELASTIC_RESTART_COUNT is 'x'"),
    ],
)
def test_what_contradicts_itself_is_named(changed, message):
    environment = {name: value for name, value in {**TORCHRUN, **changed}.items() if value is not None}
    with pytest.raises(UserError, match=re.escape(message)):
        launched(environment)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"SLURM_PROCID": "9"}, "the variable SLURM_PROCID is 9 and SLURM_STEP_NUM_TASKS is 8"),
        ({"SLURM_LOCALID": None}, "the variable SLURM_LOCALID is not set"),
        ({"SLURM_STEP_NODELIST": None}, "SLURM_STEP_NODELIST is ''"),
        ({"SLURM_STEP_NODELIST": "[1-2"}, "SLURM_STEP_NODELIST is '[1-2'"),
    ],
)
def test_what_srun_should_set_is_named(changed, message):
    environment = {name: value for name, value in {**SRUN, **changed}.items() if value is not None}
    with pytest.raises(UserError, match=re.escape(message)):
        launched(environment)
