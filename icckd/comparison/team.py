"""The processes that train runs, one after another, as their parent says; imports are paid for once.

A worker is one process, or the first of several that share each run's batches: none of those outlives it, and with one
that dies all end.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

import torch

from icckd.comparison.starting import SIGNALS, start
from icckd.comparison.worker import Failed, Order, Reply, Stop, Stopped, Worker
from icckd.distributed import ALONE, Launch, World, join
from icckd.errors import TrainingDiverged, ending, printable
from icckd.training import StopSignal

# How long a worker whose parent is gone may take to save its checkpoint.
_GRACE_SECONDS = 60.0
_HERE = "127.0.0.1"
_LAST_SECONDS = 5.0


def serve(line: Connection, threads: int, processes: int, debug: bool) -> None:
    """The process: carry out the orders that come on `line`, until None comes or the parent is gone.

    Each run takes `processes` of them, this one and others that it starts, with `threads` threads each. Signals that
    reach the whole group of processes end a training in good order, once; the parent's Stop, which may come as well,
    changes nothing then.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with StopSignal() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        torch.set_num_threads(threads)
        orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(line, orders), daemon=True).start()
        tell = _teller(line)
        with _team(processes, threads, tell, debug) as (world, give):
            worker = Worker(tell, stop, world)
            while not stop.received and (order := orders.get()) is not None:
                give(order)
                tell(worker.answer(order))
        if stop.received:  # An order that came too late is answered, too.
            tell(Stopped(stop.received))


def _teller(line: Connection) -> Callable[[Reply], None]:
    """What sends replies to the parent, for any thread to call."""
    lock = threading.Lock()

    def tell(reply: Reply) -> None:
        with lock, suppress(OSError):  # The parent is gone, as _listen notices too.
            line.send(reply)

    return tell


def _listen(line: Connection, orders: "queue.SimpleQueue[Order | None]") -> None:
    """Pass on what the parent says; where it is gone, stop in good order, and in any case soon."""
    parent_is_gone = False
    try:
        while (order := line.recv()) is not None:
            if isinstance(order, Stop):
                os.kill(os.getpid(), order.signal_number)
                break
            orders.put(order)
    except (EOFError, OSError):
        parent_is_gone = True
        os.kill(os.getpid(), signal.SIGTERM)
    orders.put(None)
    if parent_is_gone:
        time.sleep(_GRACE_SECONDS)
        os._exit(1)


@contextmanager
def _team(
    processes: int, threads: int, tell: Callable[[Reply], None], debug: bool
) -> Iterator[tuple[World, Callable[[Order | None], None]]]:
    """Context of the first of `processes`: their World, and what gives an order to the others, who carry it out too.

    An error or the death of one ends all, this one too; its parent is told that the run failed, and that this was the
    last answer.
    """
    if processes == 1:
        yield ALONE, lambda order: None
        return
    from torch.distributed import TCPStore

    def failed(code: int, text: str) -> None:
        tell(Failed(printable(text), diverged=code == ending(TrainingDiverged())[0], last=True))

    store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
    members, lines = [], []
    for rank in range(1, processes):
        here, there = multiprocessing.Pipe()
        launch = Launch(rank, processes, rank, _HERE, store.port)
        members.append(start(_assist, there, launch, threads, debug))
        lines.append(here)
        there.close()
    if not all(line.poll(None) and _is_ready(line) for line in lines):
        failed(1, "one of its processes ended as it was started")
        raise SystemExit(1)
    with join(Launch(0, processes, 0, _HERE, store.port), store=store, tell=failed, debug=debug) as world:

        def give(order: Order | None) -> None:
            for line in lines:
                line.send(order)

        yield world, give
        give(None)
    for member in members:
        member.join(_LAST_SECONDS)
        member.kill()


def _is_ready(line: Connection) -> bool:
    with suppress(EOFError, OSError):
        return bool(line.recv())
    return False


def _assist(line: Connection, launch: Launch, threads: int, debug: bool) -> None:
    """The process of another rank. It needs no signals: the first has them, too, and all agree to stop."""
    from torch.distributed import TCPStore

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    torch.set_num_threads(threads)
    line.send(True)
    store = TCPStore(launch.address, launch.port, is_master=False)
    # The first tells of what went wrong; where that one is lost, its parent does.
    with join(launch, store=store, tell=lambda code, text: None, debug=debug) as world:
        worker = Worker(lambda reply: None, StopSignal(), world)
        while (order := line.recv()) is not None:
            worker.answer(order)
