"""The death or failure of one process ends all others in seconds, with one message that names it.

Every process keeps a TCP connection to a thread of the first, the hub. The kernel closes a dead process's connection at
once, and keep-alive probes, which the kernel answers even for a process that is stopped or computes without a pause,
find a lost host: no process has to do anything to count as alive. The hub decides how the job ends, says so once and
tells all; a thread of each process then ends it with the job's exit code, whatever its main thread waits for. This
project's choice throughout.
"""

import hmac
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from icckd.distributed.launch import Launch
from icckd.errors import UserError

# How long all may take to join.
JOIN_SECONDS = 300.0
# How long the hub waits once one has failed: the death of another may be the cause, and what fails everywhere alike is
# said once.
_SETTLE_SECONDS = 1.0
# How long the first process lets the others end before it does, and a process that failed waits for the hub's word.
_LAST_SECONDS, _PATIENCE_SECONDS = 0.5, 20.0
_RETRY_SECONDS = 0.5
# A host that does not answer is lost after 5 + 4 · 2 seconds.
_IDLE_SECONDS, _PROBE_SECONDS, _PROBES = 5, 2, 4
_LONGEST_LINE = 2**16
_KEY = "icckd/lifeline"

Tell = Callable[[int, str], None]
Message = dict[str, Any]


class Store(Protocol):
    """What is used of torch.distributed's key-value stores."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...


class Lifeline:
    """This process's connection to the hub, which it also serves where it is the first.

    Made, it waits for all processes; raises UserError where some have not come in JOIN_SECONDS. Then `leave` or `fail`
    must be called, from the main thread. `tell(code, text)` is called in one process, to say why the job ends with an
    exit code other than 0: in the first, or where that one is lost, in the lowest rank that is left on its host, and
    in that of every other host. `token` is a word that these processes share and no others.
    """

    def __init__(self, launch: Launch, store: Store, tell: Tell):
        self._launch = launch
        self._tell = tell
        self._over = threading.Event()
        self._trace = ""
        if launch.rank == 0:
            hub = _Hub(launch, tell)
            store.set(_KEY, json.dumps(hub.invitation))
            hub.start()
        self._join(store)
        os.register_at_fork(after_in_child=self._line.close)  # A child must not keep it open.
        threading.Thread(target=self._listen, daemon=True).start()

    def _join(self, store: Store) -> None:
        until = time.monotonic() + JOIN_SECONDS
        problem = "it has ended"
        while time.monotonic() < until:
            # A store that outlives a restart of the job may still have the invitation of those before.
            invitation = json.loads(store.get(_KEY))
            try:
                self._line = _Line(_connection(invitation))
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
                self._tell(1, _gone(self._first))
            _exit(1)
        if message.get("whose") == self._launch.rank and self._trace:
            with suppress(OSError):
                print(self._trace, file=sys.stderr)
        _exit(message["end"])


@dataclass
class _Member:
    """A process as the hub knows it."""

    line: "_Line"
    rank: int
    host: str
    process: int
    lost: bool = False
    ended: tuple[int, str] | None = None
    failed: bool = False


@dataclass(frozen=True)
class _Verdict:
    """How the job ends; `whose` is the rank whose failure it is."""

    code: int
    text: str = ""
    whose: int | None = None


class _Hub:
    """What the first process does for all: a thread that hears every process and decides how the job ends."""

    def __init__(self, launch: Launch, tell: Tell):
        self._size = launch.size
        self._tell = tell
        self._listener = socket.create_server(("127.0.0.1" if launch.one_host else "", 0), backlog=launch.size)
        self._token = secrets.token_hex(16)
        self._members: list[_Member] = []
        self._strangers: list[_Line] = []
        self._failed: list[_Member] = []
        self._deadline: float | None = time.monotonic() + JOIN_SECONDS
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.invitation = {
            "addresses": ["127.0.0.1"] if launch.one_host else _own_addresses(launch),
            "port": self._listener.getsockname()[1],
            "token": self._token,
        }
        os.register_at_fork(after_in_child=self._forget)

    def start(self) -> None:
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while (verdict := self._verdict()) is None:
            for key, _ in self._selector.select(self._seconds_left()):
                if key.fileobj is self._listener:
                    self._meet()
                else:
                    self._hear(key.data)
        self._conclude(verdict)

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def _meet(self) -> None:
        connection = self._listener.accept()[0]
        _watch(connection)
        line = _Line(connection)
        self._selector.register(connection, selectors.EVENT_READ, line)

    def _hear(self, line: "_Line") -> None:
        member = next((each for each in self._members if each.line is line), None)
        messages = line.received()
        if messages is None:
            self._selector.unregister(line.connection)
            line.close()
            if member is not None:
                member.lost = member.ended is None or member.failed
            return
        for message in messages:
            if member is None:
                member = self._admitted(line, message)
            elif not member.failed:  # Who has left may still be interrupted.
                self._note_end(member, message)

    def _admitted(self, line: "_Line", message: Message) -> _Member | None:
        """The member that introduces itself by `message`; None, and no more of it, where that has not the token."""
        if not hmac.compare_digest(str(message.get("token")), self._token):
            self._selector.unregister(line.connection)
            line.close()
            return None
        member = _Member(line, message["rank"], message["host"], message["process"])
        self._members.append(member)
        if len(self._members) == self._size:
            self._welcome()
        return member

    def _welcome(self) -> None:
        self._members.sort(key=lambda member: member.rank)
        self._deadline = None
        hosts = {self._members[0].host} if self._size == 1 else set()
        for member in self._members:
            # The first speaks while it is there.
            speaks = member.rank > 0 and member.host not in hosts
            hosts |= {member.host} if speaks else set()
            member.line.send({"first": self._name(self._members[0]), "speaks": speaks})

    def _note_end(self, member: _Member, message: Message) -> None:
        member.failed = "failed" in message
        member.ended = (message["failed" if member.failed else "left"], message["text"])
        if member.failed:
            self._failed.append(member)
            self._deadline = self._deadline or time.monotonic() + _SETTLE_SECONDS

    def _verdict(self) -> _Verdict | None:
        """How the job ends, once that is clear."""
        lost = next((member for member in self._members if member.lost), None)
        if lost is not None:
            return _Verdict(1, _gone(self._name(lost)))
        late = self._seconds_left() == 0.0
        if len(self._members) < self._size:
            return _Verdict(2, self._missing()) if late else None
        ends = [member.ended for member in self._members if member.ended is not None]
        if self._failed and (late or len(ends) == self._size):
            return self._failure(next((member for member in self._failed if member.rank == 0), self._failed[0]))
        if len(ends) == self._size:
            return _Verdict(*max(ends, key=lambda end: end[0]))
        return None

    def _failure(self, member: _Member) -> _Verdict:
        """That of `member`. What the first process finds wrong is wrong for all."""
        assert member.ended is not None
        code, text = member.ended
        return _Verdict(code, text if code != 1 and member.rank == 0 else f"{self._name(member)}: {text}", member.rank)

    def _missing(self) -> str:
        ranks = sorted(set(range(self._size)) - {member.rank for member in self._members})
        return (
            f"{len(ranks)} of {self._size} processes have not joined within {JOIN_SECONDS:.0f} seconds: "
            f"rank {', '.join(map(str, ranks[:8]))}{', …' if len(ranks) > 8 else ''}"
        )

    def _name(self, member: _Member) -> str:
        return f"rank {member.rank} of {self._size} processes (host {member.host}, pid {member.process})"

    def _conclude(self, verdict: _Verdict) -> None:
        """Say how the job ends and tell all; the first process ends last, since others may not have heard yet."""
        end: Message = {"end": verdict.code}
        if verdict.code:
            self._tell(verdict.code, verdict.text)
            end["whose"] = verdict.whose
        others = [member for member in self._members if member.rank > 0 and not member.lost]
        for member in others:
            member.line.send(end)
        if verdict.code:
            until = time.monotonic() + _LAST_SECONDS
            for member in others:
                member.line.drain(until)
        for member in self._members:
            if member.rank == 0:
                member.line.send(end)

    def _forget(self) -> None:
        self._listener.close()
        for member in self._members:
            member.line.close()


class _Line:
    """A connection that carries a JSON object on each line."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        self._begun = b""
        self._waiting: list[Message] = []

    def send(self, message: Message) -> None:
        with suppress(OSError):  # The other end is gone, as who reads finds.
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def received(self) -> list[Message] | None:
        """What has come, waiting if nothing has; None where no more will, or what comes is of another kind."""
        try:
            data = self.connection.recv(_LONGEST_LINE)
            *lines, self._begun = (self._begun + data).split(b"\n")
            messages = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return None
        if not data or len(self._begun) > _LONGEST_LINE or not all(isinstance(each, dict) for each in messages):
            return None
        return messages

    def next(self) -> Message | None:
        """The next message; None where the other end is gone."""
        while not self._waiting:
            messages = self.received()
            if messages is None:
                return None
            self._waiting += messages
        return self._waiting.pop(0)

    def drain(self, until: float) -> None:
        """Wait for the other end to close, to this time at most."""
        with suppress(OSError):
            while (left := until - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(_LONGEST_LINE):
                    return

    def close(self) -> None:
        self.connection.close()


def _connection(invitation: Message) -> socket.socket:
    """A connection to the hub. Raises OSError where none of its addresses answers."""
    problems = []
    for address in invitation["addresses"]:
        try:
            connection = socket.create_connection((address, invitation["port"]), timeout=30)
        except OSError as error:
            problems.append(f"{address}, port {invitation['port']}: {error}")
            continue
        connection.settimeout(None)
        _watch(connection)
        return connection
    raise OSError("; ".join(problems))


def _own_addresses(launch: Launch) -> list[str]:
    """Where other hosts may reach this one: by its address on the way to where all meet, and by names."""
    found = [launch.address, socket.gethostname()]
    with suppress(OSError):
        family, kind, _, _, address = socket.getaddrinfo(launch.address, launch.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # Sends nothing.
            found.insert(0, probe.getsockname()[0])
    return found


def _watch(connection: socket.socket) -> None:
    """Let the kernel find out when the host at the other end is lost."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": _IDLE_SECONDS,
        "TCP_KEEPINTVL": _PROBE_SECONDS,
        "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": 1000 * (_IDLE_SECONDS + _PROBES * _PROBE_SECONDS),
    }
    for name, value in options.items():
        if hasattr(socket, name):  # Not every system has them all.
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _gone(name: str) -> str:
    return (
        f"{name} is gone: killed, or out of memory, perhaps; the last checkpoint, if there is one, is kept: "
        "--resume continues"
    )


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
