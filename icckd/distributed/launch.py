"""Which of how many processes this one is, from the variables of torchrun or of SLURM's srun."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from icckd.errors import UserError

# Ports that SLURM's steps meet at: below those that systems give away by themselves.
_FIRST_PORT, _PORTS = 15_000, 15_000
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """A process among the `size` of a job.

    Args:
        rank: Its number in the job, from 0.
        size: How many processes the job has.
        local_rank: Its number on its host, from 0.
        address: The host where all meet, and
        port: the port there.
        one_host: Whether all processes run on one host.
        restarted: Whether the job was started before, and is to go on.
        restarts: How often the launcher itself starts a job again that failed.
        launcher: Who started it: "torchrun", "srun", or "" for nobody.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "localhost"
    port: int = 0
    one_host: bool = True
    restarted: bool = False
    restarts: int = 0
    launcher: str = ""


def launched(environment: Mapping[str, str]) -> Launch:
    """What the variables in `environment` say; one process, where they say nothing.

    torchrun's come first: srun may have started torchrun. Of SLURM's, those of a step of several tasks count: only srun
    sets them. Raises UserError that names variables which are wrong, missing or contradict each other.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _checked(_by_torchrun(environment), "RANK", "WORLD_SIZE", "LOCAL_RANK")
    if _whole(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _checked(_by_srun(environment), "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    return Launch()


def _by_torchrun(environment: Mapping[str, str]) -> Launch:
    missing = [name for name in _NAMES if name not in environment]
    if missing:
        given = " and ".join(name for name in _NAMES[:2] if name in environment)
        raise UserError(
            f"{given} set, but {', '.join(missing)} not: torchrun sets {', '.join(_NAMES)}; for one process unset all"
        )
    size = _whole(environment, "WORLD_SIZE")
    return Launch(
        rank=_whole(environment, "RANK"),
        size=size,
        local_rank=_whole(environment, "LOCAL_RANK"),
        address=environment["MASTER_ADDR"],
        port=_port(environment),
        one_host=_whole(environment, "LOCAL_WORLD_SIZE", 0) == size,
        restarted=_whole(environment, "TORCHELASTIC_RESTART_COUNT", 0) > 0,
        restarts=_whole(environment, "TORCHELASTIC_MAX_RESTARTS", 0),
        launcher="torchrun",
    )


def _by_srun(environment: Mapping[str, str]) -> Launch:
    job, step = _whole(environment, "SLURM_JOB_ID"), _whole(environment, "SLURM_STEP_ID", 0)
    given = "MASTER_PORT" in environment
    return Launch(
        rank=_whole(environment, "SLURM_PROCID"),
        size=_whole(environment, "SLURM_STEP_NUM_TASKS"),
        local_rank=_whole(environment, "SLURM_LOCALID"),
        address=environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", "")),
        # Steps of one job that run at once meet at different ports.
        port=_port(environment) if given else _FIRST_PORT + (job + 997 * step) % _PORTS,
        one_host=_whole(environment, "SLURM_STEP_NUM_NODES", 0) == 1,
        restarted=_whole(environment, "SLURM_RESTART_COUNT", 0) > 0,
        launcher="srun",
    )


def first_host(hosts: str) -> str:
    """The first of the hosts that SLURM writes as "node[01-04,07],other". Raises UserError where there is none."""
    match = re.match(r"(?:[^,\[\]\s]|\[[^\[\]]+\])+", hosts)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST is {hosts!r}; it should name hosts, as node[01-04,07],other does")
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", match[0])


def _whole(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        what = "not set" if text is None else repr(text)
        raise UserError(f"the variable {name} is {what}; it should be a whole number, as the launcher sets it")
    return int(text)


def _port(environment: Mapping[str, str]) -> int:
    port = _whole(environment, "MASTER_PORT")
    if not 0 < port < 2**16:
        raise UserError(f"the variable MASTER_PORT is {port}; it should be a port, 1 to 65535")
    return port


def _checked(launch: Launch, rank: str, size: str, local_rank: str) -> Launch:
    """`launch`, if its numbers agree; the names are those of their variables."""
    if launch.rank >= launch.size:
        raise UserError(f"the variable {rank} is {launch.rank} and {size} is {launch.size}; ranks are below the size")
    if launch.local_rank > launch.rank:
        raise UserError(
            f"the variable {local_rank} is {launch.local_rank} and {rank} is {launch.rank}; the rank on a host is at "
            "most the rank of all"
        )
    return launch
