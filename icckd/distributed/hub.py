"""What the first process does for all: it hears every process and decides how the job ends."""

import hmac
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from icckd.distributed.launch import Launch
from icckd.distributed.line import Line, Message, own_addresses

Tell = Callable[[int, str], None]
# How long all may take to join.
JOIN_SECONDS = 300.0
# How long the hub waits once one has failed: the death of another may be the cause, and what fails everywhere alike is
# said once.
_SETTLE_SECONDS = 1.0
# How long the first process lets the others end before it does.
_LAST_SECONDS = 0.5


@dataclass
class _Member:
    """A process as the hub knows it."""

    line: Line
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


class Hub:
    """A thread of the first process that all are connected to.

    `invitation` says where and as whom to join. `tell(code, text)` is called with how the job ends, if not well.
    """

    def __init__(self, launch: Launch, tell: Tell):
        self._size = launch.size
        self._tell = tell
        self._listener = socket.create_server(("127.0.0.1" if launch.one_host else "", 0), backlog=launch.size)
        self._token = secrets.token_hex(16)
        self._members: list[_Member] = []
        self._failed: list[_Member] = []
        self._deadline: float | None = time.monotonic() + JOIN_SECONDS
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self.invitation = {
            "addresses": ["127.0.0.1"] if launch.one_host else own_addresses(launch),
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
        line = Line(connection)
        self._selector.register(connection, selectors.EVENT_READ, line)

    def _hear(self, line: Line) -> None:
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

    def _admitted(self, line: Line, message: Message) -> _Member | None:
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
            return _Verdict(1, gone(self._name(lost)))
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


def gone(name: str) -> str:
    return (
        f"{name} is gone: killed, or out of memory, perhaps; the last checkpoint, if there is one, is kept: "
        "--resume continues"
    )
