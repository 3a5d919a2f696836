"""The death or failure of one process ends all others in seconds, with one message that names it.

Every process keeps a TCP connection to a thread of the first, the hub. The kernel closes a dead process's connection at
once, and keep-alive probes, which the kernel answers even for a process that is stopped or computes without a pause,
find a lost host: no process has to do anything to count as alive. The hub decides how the job ends, says so once and
tells all; a thread of each process then ends it with the job's exit code, whatever its main thread waits for. This
project's choice throughout.
"""

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from icckd.distributed.hub import JOIN_SECONDS, Hub, Tell, gone
from icckd.distributed.launch import Launch
from icckd.distributed.line import Message, connected
from icckd.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

# How long a process that failed waits for the hub's word.
_PATIENCE_SECONDS = 20.0
_RETRY_SECONDS = 0.5
_KEY = "icckd/lifeline"


class Lifeline:
    """This process's connection to the hub, which it also serves where it is the first.

    Made, it waits for all processes; raises UserError where some have not come in JOIN_SECONDS. Then `leave` or `fail`
    must be called, from the main thread. `tell(code, text)` is called in one process, to say why the job ends with an
    exit code other than 0: in the first, or where that one is lost, in the lowest rank that is left on its host, and
    in that of every other host. `token` is a word that these processes share and no others.
    """

    def __init__(self, launch: Launch, store: "Store", tell: Tell):
        self._launch = launch
        self._tell = tell
        self._over = threading.Event()
        self._trace = ""
        if launch.rank == 0:
            hub = Hub(launch, tell)
            store.set(_KEY, json.dumps(hub.invitation))
            hub.start()
        self._join(store)
        os.register_at_fork(after_in_child=self._line.close)  # A child must not keep it open.
        threading.Thread(target=self._listen, daemon=True).start()

    def _join(self, store: "Store") -> None:
        until = time.monotonic() + JOIN_SECONDS
        problem = "it has ended"
        while time.monotonic() < until:
            # A store that outlives a restart of the job may still have the invitation of those before.
            invitation = json.loads(store.get(_KEY))
            try:
                self._line = connected(invitation)
            except OSError as error:
                problem = str(error)
            else:
                self._line.send(
                    {
                        "token": invitation["token"],
                        "rank": self._launch.rank,
                        "host": socket.gethostname(),
                        "process": os.getpid(),
                    }
                )
                welcome = self._line.next()
                if welcome is not None:
                    break
            time.sleep(_RETRY_SECONDS)
        else:
            raise UserError(f"rank {self._launch.rank} cannot reach rank 0: {problem}")
        if "end" in welcome:
            self._end(welcome)
        self.token: str = invitation["token"]
        self._first: str = welcome["first"]
        self._speaks: bool = welcome["speaks"]

    def leave(self, code: int = 0, text: str = "") -> None:
        """Say that this process has done its part, and wait until all have.

        Returns where all leave with code 0; else the process ends, with the highest code.
        """
        self._line.send({"left": code, "text": text})
        self._over.wait()

    def fail(self, code: int, text: str, trace: str = "") -> NoReturn:
        """End all processes with `code`; `text` says why, `trace` is shown if this failure is the one that counts."""
        self._trace = trace
        self._line.send({"failed": code, "text": text})
        self._over.wait(_PATIENCE_SECONDS)
        self._tell(code, text)
        _exit(code)

    def _listen(self) -> None:
        message = self._line.next()
        if message == {"end": 0}:
            self._over.set()
        else:
            self._end(message)

    def _end(self, message: Message | None) -> NoReturn:
        """End the process as the hub says; None: the hub is gone."""
        if message is None:
            if self._speaks:
                self._tell(1, gone(self._first))
            _exit(1)
        if message.get("whose") == self._launch.rank and self._trace:
            with suppress(OSError):
                print(self._trace, file=sys.stderr)
        _exit(message["end"])


def _exit(code: int) -> NoReturn:
    """End the process at once, whatever its other threads do."""
    # The main thread may hold a stream's lock for ever.
    guard = threading.Timer(1.0, os._exit, (code,))
    guard.daemon = True
    guard.start()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)
