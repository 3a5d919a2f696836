"""Connections between the processes of a job, which carry JSON and notice by themselves where the other end is lost."""

import json
import socket
import time
from contextlib import suppress
from typing import Any

from icckd.distributed.launch import Launch

Message = dict[str, Any]
# A host that does not answer is lost after 5 + 4 · 2 seconds.
_IDLE_SECONDS, _PROBE_SECONDS, _PROBES = 5, 2, 4
_LONGEST_LINE = 2**16


class Line:
    """A connection that carries a JSON object on each line."""

    def __init__(self, connection: socket.socket):
        _watch(connection)
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


def connected(invitation: Message) -> Line:
    """A line to the hub. Raises OSError where none of its addresses answers."""
    problems = []
    for address in invitation["addresses"]:
        try:
            connection = socket.create_connection((address, invitation["port"]), timeout=30)
        except OSError as error:
            problems.append(f"{address}, port {invitation['port']}: {error}")
            continue
        connection.settimeout(None)
        return Line(connection)
    raise OSError("; ".join(problems))


def own_addresses(launch: Launch) -> list[str]:
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
