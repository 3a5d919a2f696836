"""The processes of a run: who this one is among them, what they agree on, and how they end together."""

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from icckd.distributed.hub import JOIN_SECONDS, Tell
from icckd.distributed.launch import Launch, launched
from icckd.distributed.lifeline import Lifeline
from icckd.errors import Interrupted, UserError, ending

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

T = TypeVar("T")
# Collectives wait this long, since one process may write a report or measure a network for all. The lifeline finds
# those that are gone long before.
_PATIENCE = timedelta(hours=2)


class World:
    """The processes of a run as one of them sees them.

    Attributes:
        rank: This process's number, from 0.
        size: How many there are.
        local_rank: This process's number on its host, from 0.
        group: All of them, for rows and gradients: NCCL for tensors on a GPU, gloo for others. None for one process,
            and before `connect`.
    """

    def __init__(self, launch: Launch | None = None, store: "Store | None" = None):
        launch = launch or Launch()
        self.rank, self.size, self.local_rank = launch.rank, launch.size, launch.local_rank
        self.group: ProcessGroup | None = None
        self._launch = launch
        self._store = store
        self._hosts: ProcessGroup | None = None
        self._agreed = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def connect(self, device: torch.device) -> torch.device:
        """Make the groups for computing on `device`; the device of this process, a GPU by its rank on its host.

        Done again, it changes nothing. Raises UserError where the host has fewer GPUs than processes.
        """
        if self.size == 1:
            return device
        import torch.distributed as dist

        backend = "gloo"
        if device.type == "cuda":
            device = torch.device("cuda", self._gpu(torch.cuda.device_count()))
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        if self.group is None:
            assert self._store is not None
            # It takes the default group as the default of arguments: imported later, as by torch._dynamo, it would keep
            # this one and its threads, which abort a process where they still let go of tensors as it ends.
            importlib.import_module("torch.distributed.nn")
            dist.init_process_group(
                backend,
                store=dist.PrefixStore("groups", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=_PATIENCE,
            )
            self.group = dist.group.WORLD
            # One of its own, so that no agreement waits behind gradients.
            self._hosts = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return device

    def _gpu(self, count: int) -> int:
        if self._launch.launcher == "srun" and count == 1:  # Which may show each process a GPU of its own.
            return 0
        if self.local_rank >= count:
            raise UserError(
                f"{self.local_rank + 1} processes or more were started on this host, which has {count} GPUs; start at "
                "most one for each, or use --device cpu"
            )
        return self.local_rank

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make()` returns on the first process, which alone calls it; JSON must be able to tell of it."""
        if self.size == 1:
            return make()
        assert self._store is not None
        self._agreed += 1
        key = f"agreed/{self._agreed}"
        if self.first:
            self._store.set(key, json.dumps(make()))
        self._store.wait([key], _PATIENCE)
        value: T = json.loads(self._store.get(key))
        return value

    def bytes_from_first(self, make: Callable[[], bytes]) -> bytes:
        """What `make()` returns on the first process, which alone calls it. `connect` comes before."""
        if self.size == 1:
            return make()
        import torch.distributed as dist

        made = make() if self.first else b""
        values = torch.empty(self.from_first(lambda: len(made)), dtype=torch.uint8)
        if self.first and made:
            values.copy_(torch.frombuffer(bytearray(made), dtype=torch.uint8))
        if len(values):
            dist.broadcast(values, 0, group=self._hosts)
        return values.numpy().tobytes()

    def vote(self, value: int) -> Callable[[], int]:
        """Begin to find the largest `value` of all processes; what is returned waits for it.

        Done by hosts: no GPU is waited for. All processes vote equally often, in one order. `connect` comes before.
        """
        if self.size == 1:
            return lambda: value
        import torch.distributed as dist

        largest: Tensor = torch.tensor(value)
        work = dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._hosts, async_op=True)

        def result() -> int:
            work.wait()
            return int(largest)

        return result

    def most(self, value: int) -> int:
        """The largest `value` of all processes, by hosts."""
        return self.vote(value)()

    def gather_on_first(self, values: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows (N, …) of all processes, rank by rank, of which this has `values` (n, …); on others than the first none.

        `counts` are the numbers of rows of each process. Tensors on the host; `connect` comes before.
        """
        import torch.distributed as dist

        padded = values.new_zeros((max(counts), *values.shape[1:]))
        padded[: len(values)] = values
        received = [torch.empty_like(padded) for _ in counts] if self.first else None
        dist.gather(padded, received, 0, group=self._hosts)
        return torch.cat([x[:n] for x, n in zip(received, counts, strict=True)]) if received else values[:0]

    def disconnect(self) -> None:
        """Give the groups up."""
        if self.group is not None:
            import torch.distributed as dist

            dist.destroy_process_group()
            self.group = self._hosts = None


ALONE = World()


def tell(code: int, text: str) -> None:
    """Say on standard error why a process ends with `code`."""
    with suppress(OSError):  # The exit code says it too, where standard error cannot be written.
        print(f"icckd: {text}" if code >= 128 else f"icckd: error: {text}", file=sys.stderr, flush=True)


@contextmanager
def join(
    launch: Launch | None = None,
    *,
    store: "Store | None" = None,
    tell: Tell = tell,
    debug: bool = False,
) -> Iterator[World]:
    """Context in which this process is one of those of a job: that of `launch`, or as torchrun or srun say.

    They meet in `store`, or at the launch's address. Where an exception leaves the context on one process, or one dies,
    all end within seconds with its exit code, as `icckd.errors.ending` has it (1 for one that died), and `tell(code,
    text)` is called in one of them; the code that follows the context is not reached. Interrupted, which all raise,
    ends each in its own time. With `debug` the process whose error it is shows the traceback. One process alone is
    left to end as ever. Raises UserError for wrong variables, and where the processes do not find each other.
    """
    launch = launched(os.environ) if launch is None else launch
    if launch.size == 1:
        yield World(launch)
        return
    lifeline, world = _met(launch, store, tell)
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        _on_signals(_terminated, signal.SIGTERM)
    try:
        yield world
        world.disconnect()
        lifeline.leave()
    except BaseException as error:
        _on_signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM)
        code, text = ending(error)
        if isinstance(error, Interrupted) or code == 0:
            lifeline.leave(code, text)
            raise
        lifeline.fail(code, text, traceback.format_exc() if debug else "")


def _on_signals(handler: "signal._HANDLER", *numbers: int) -> None:
    if threading.current_thread() is threading.main_thread():  # Python knows no others' signals.
        for number in numbers:
            signal.signal(number, handler)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def check_available() -> None:
    """Raise UserError where this PyTorch cannot do with several processes."""
    from torch.distributed import is_available

    if not is_available():
        raise UserError("this build of PyTorch has no torch.distributed, which several processes need; start one")


def _met(launch: Launch, store: "Store | None", tell: Tell) -> tuple[Lifeline, World]:
    check_available()
    from torch.distributed import PrefixStore

    try:
        store = _store(launch) if store is None else store
        lifeline = Lifeline(launch, store, tell)
    except RuntimeError as error:
        raise UserError(
            f"rank {launch.rank} of {launch.size} processes cannot meet the others at the host {launch.address}, port "
            f"{launch.port}: {' '.join(str(error).split())[:200]}"
        ) from error
    return lifeline, World(launch, PrefixStore(lifeline.token, store))


def _store(launch: Launch) -> "Store":
    """Where the processes meet: torchrun's own store, or one that the first process serves."""
    from torch.distributed import rendezvous

    host = f"[{launch.address}]" if ":" in launch.address else launch.address
    found = rendezvous(f"tcp://{host}:{launch.port}", launch.rank, launch.size, timeout=timedelta(seconds=JOIN_SECONDS))
    store: Store = next(iter(found))[0]
    return store
