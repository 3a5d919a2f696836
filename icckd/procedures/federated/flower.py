"""Clients on other machines, by Flower (flower.ai, the extra `federated`).

The server is Flower's of `start_server`, its clients those of `start_client`: a stream of messages for each client, of
bytes and plain values alone. Flower calls both deprecated in favour of a service that sends every client the code to
run; here each runs its own, and needs no service beside it. Nothing is encrypted, and nobody is asked who he is:
this is for a machine, or for machines that trust each other and their network.
"""

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import ModuleType
from typing import Any

from icckd.errors import Interrupted, UserError, reason
from icckd.procedures.federated.clients import Client, OnStep
from icckd.procedures.federated.messages import Answer, Question, state_of
from icckd.procedures.federated.wire import (
    Refused,
    answer_from_wire,
    answer_to_wire,
    question_from_wire,
    question_to_wire,
)

_LOOK_SECONDS = 0.2
# How long one that has just come may take to say who it is.
_GREETING_SECONDS = 30
# After how long clients of a server that was stopped look for it again.
_RETURN_SECONDS = 3
_LONGEST_VALUE = 80
_REFUSED, _NUMBER, _SETTINGS = "refused", "client", "settings"
Say = Callable[[str], None]


def flower() -> ModuleType:
    """The package flwr, which sends nobody news of its use from here. Raises UserError where it is not there."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    try:
        import flwr.client
        import flwr.server
        from flwr.client import start_client  # noqa: F401
        from flwr.server import start_server  # noqa: F401
    except Exception as error:  # Of any kind: it, or a part of it, may be of another version than is wanted.
        raise UserError(
            f"icckd federated needs flwr, and that cannot be imported ({reason(error)}): pip install 'icckd[federated]'"
        ) from error
    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # What there is to say is said here.
    return flwr


class FarClients:
    """The clients that are connected to a Flower server: `icckd.procedures.federated.clients.Clients`.

    Args:
        manager: Who is connected.
        clients: How many images each client has, and what its networks are like: the same here as there.
        settings: What a client's settings must be, by dotted name.
        patience: Seconds that a client may take over an answer; and to wait, at the start, until all have come.
        say: Is told who comes, goes and is refused.
    """

    def __init__(self, manager: Any, clients: Sequence[Client], settings: Mapping[str, str], patience: float, say: Say):
        self.images = [len(client.part) for client in clients]
        self._classes = clients[0].workshop.network.classes
        self._manager = manager
        self._settings = settings
        self._patience = patience
        self._say = say
        self._pool = ThreadPoolExecutor(2 * len(clients) + 2)
        self._known: dict[str, int | None] = {}
        self._begun = False

    def ask(self, question: Question, whom: Collection[int], on_step: OnStep) -> Iterator[tuple[int, Answer]]:
        if not whom:
            return
        answers: dict[int, Answer] = {}
        while not answers:
            connected = self._wait_for(whom, on_step)
            answers = self._answers(question, connected, on_step)
        for number in sorted(answers):
            on_step(None, answers[number].steps)
            yield number, answers[number]

    def _answers(self, question: Question, connected: Mapping[int, Any], on_step: OnStep) -> dict[int, Answer]:
        """Those that come, by number; who sends none, or what is none, is told of and left out."""
        from flwr.common import FitIns, Parameters

        arrays, values = question_to_wire(question)
        ins = FitIns(Parameters(arrays, "numpy.ndarray"), values)
        asked = {n: self._pool.submit(proxy.fit, ins, self._patience, 0) for n, proxy in connected.items()}
        self._await(list(asked.values()), on_step)
        answers = {}
        for number, future in asked.items():
            try:
                result = future.result()
                answers[number] = answer_from_wire(
                    result.parameters.tensors, result.metrics, question, self.images[number], self._classes
                )
            except Refused as error:
                self._refuse(connected[number], f"client {number}'s answer is refused: {error}")
            except Exception:  # Of any kind: Flower's for a connection that broke, or that took too long.
                self._say(f"client {number} is gone; the round goes on without it")
        return answers

    def _wait_for(self, whom: Collection[int], on_step: OnStep) -> dict[int, Any]:
        """Who of `whom` is connected, by number: at first all, if they come in time; later one at least."""
        started, told = time.monotonic(), False
        while True:
            self._greet(on_step)
            there = self._connected()
            all_of_them = len(there) == len(self.images)
            in_time = time.monotonic() - started < self._patience
            chosen = {number: proxy for number, proxy in there.items() if number in whom}
            if chosen and (self._begun or all_of_them or not in_time):
                if not (self._begun or all_of_them):
                    self._say(f"the others have not come; it begins with {len(there)} of {len(self.images)} clients")
                self._begun = True
                return chosen
            if not told:
                self._say(f"waiting for clients; there are {len(there)} of {len(self.images)}")
                told = True
            on_step(None, 0)
            time.sleep(_LOOK_SECONDS)

    def _connected(self) -> dict[int, Any]:
        """By number; of two that say they are the same client the one that came last."""
        present = dict(self._manager.all())
        self._known = {place: number for place, number in self._known.items() if place in present}
        return {number: present[place] for place, number in self._known.items() if number is not None}

    def _greet(self, on_step: OnStep) -> None:
        """Ask who is new which client it is, and compare its settings."""
        from flwr.common import GetPropertiesIns

        for place, proxy in dict(self._manager.all()).items():
            if place in self._known:
                continue
            self._known[place] = None
            future = self._pool.submit(proxy.get_properties, GetPropertiesIns({}), _GREETING_SECONDS, 0)
            self._await([future], on_step)
            try:
                number = self._introduced(future.result().properties)
            except Refused as error:
                self._refuse(proxy, f"a client is refused: {error}")
            except Exception:  # Of any kind: it has gone already.
                continue
            else:
                self._known[place] = number
                self._say(f"client {number} is here; there are {len(self._connected())} of {len(self.images)}")

    def _introduced(self, properties: Mapping[str, Any]) -> int:
        number = properties.get(_NUMBER)
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(self.images):
            raise Refused(f"its --client is {number!r}; it should be in [0, {len(self.images)})")
        try:
            own = dict(json.loads(properties.get(_SETTINGS, "")))
        except (TypeError, ValueError, RecursionError) as error:
            raise Refused(f"client {number} does not say what its settings are") from error
        for name, value in self._settings.items():
            if own.get(name) != value:
                other = str(own.get(name))[:_LONGEST_VALUE]
                raise Refused(f"client {number} has {name} {other}; it is {value} at the server")
        return number

    def _refuse(self, proxy: Any, why: str) -> None:
        """Tell whoever it is why, which ends it if it is a client of this tool's; it is not asked again."""
        from flwr.common import FitIns, Parameters

        self._say(why)
        self._known[proxy.cid] = None
        self._pool.submit(proxy.fit, FitIns(Parameters([], "numpy.ndarray"), {_REFUSED: why}), _GREETING_SECONDS, 0)

    def _await(self, futures: Sequence["Future[Any]"], on_step: OnStep) -> None:
        while wait(futures, timeout=_LOOK_SECONDS).not_done:
            on_step(None, 0)


def serve(address: str, work: Callable[[Any], None]) -> None:
    """Listen at `address`, HOST:PORT, and do `work(manager)`, then send everybody home.

    Raises what `work` raises. Clients of a server that a signal stops come back when it goes on.
    """
    _check_free(address)
    package = flower()
    from flwr.common import ReconnectIns

    class Server(package.server.Server):  # type: ignore[name-defined]
        """Flower's, but for what it does."""

        error: BaseException | None = None

        def fit(self, num_rounds: int, timeout: float | None) -> tuple[Any, float]:
            for number in (signal.SIGINT, signal.SIGTERM):  # Flower's own would end the process without a word.
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            try:
                work(self.client_manager())
            except BaseException as error:
                self.error = error
            return package.server.History(), 0.0

        def disconnect_all_clients(self, timeout: float | None) -> None:
            seconds = _RETURN_SECONDS if isinstance(self.error, Interrupted) else None
            with ThreadPoolExecutor() as pool:
                for proxy in dict(self.client_manager().all()).values():
                    pool.submit(proxy.reconnect, ReconnectIns(seconds), _GREETING_SECONDS, 0)

    server = Server(client_manager=package.server.SimpleClientManager())
    config = package.server.ServerConfig(num_rounds=1)
    package.server.start_server(server_address=address, server=server, config=config)
    if server.error is not None:
        raise server.error


def _check_free(address: str) -> None:
    """Raise UserError where nobody can listen at `address`, or somebody does, which Flower would not notice."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(place)
    except (OSError, OverflowError) as error:
        raise UserError(f"--server {address} cannot be listened at ({error}); give a free port of this host") from error


def take_part(address: str, client: Client, settings: Mapping[str, str], patience: float, say: Say) -> None:
    """Answer the questions of the server at `address` until it has no more.

    Connects again where the connection breaks. Raises UserError where the server does not answer for `patience`
    seconds, or says that this client is refused.
    """
    package = flower()
    import grpc
    from flwr.common import Code, FitIns, FitRes, GetPropertiesIns, GetPropertiesRes, Parameters, Status

    heard = time.monotonic()
    fine = Status(Code.OK, "")

    class Answering(package.client.Client):  # type: ignore[name-defined]
        """Flower's, which passes questions on."""

        def get_properties(self, ins: GetPropertiesIns) -> GetPropertiesRes:
            say(f"connected to {address} as client {client.number}")
            return GetPropertiesRes(fine, {_NUMBER: client.number, _SETTINGS: json.dumps(dict(settings))})

        def fit(self, ins: FitIns) -> FitRes:
            nonlocal heard
            if _REFUSED in ins.config:
                raise UserError(f"the server at {address} says: {ins.config[_REFUSED]}")
            arrays, values = answer_to_wire(self._answer(ins))
            heard = time.monotonic()
            return FitRes(fine, Parameters(arrays, "numpy.ndarray"), len(client.part), values)

        def _answer(self, ins: FitIns) -> Answer:
            network = client.workshop.network
            try:
                question = question_from_wire(ins.parameters.tensors, ins.config, state_of(network), network.classes)
            except Refused as error:
                raise UserError(f"what the server at {address} asks is refused: {error}") from error
            return client.answer(question, lambda loss, steps: None)

    told = False
    while True:
        try:
            package.client.start_client(server_address=address, client=Answering())
            return
        except (grpc.RpcError, StopIteration) as error:
            if time.monotonic() - heard > patience:
                raise UserError(f"--server {address} does not answer; is a server running there?") from error
            if not told:
                say(f"looking for a server at {address}")
                told = True
            time.sleep(_LOOK_SECONDS * 5)
