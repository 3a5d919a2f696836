"""Server and clients as processes of their own, on loopback, where flwr is installed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icckd.procedures.federated.flower import flower, serve

ROOT = Path(__file__).parents[3]
SMALL = (
    *("--student.arch", "convnet-small", "--data.train_fraction", "0.2", "--federated.clients", "3"),
    *("--student.loss.pkd.warmup_rounds", "2", "--student.loss.pkd.threshold", "0.0", "--device", "cpu"),
)


@pytest.fixture
def started():
    """Starts `icckd` with its output in a file; whatever still runs at the end is ended."""
    processes = []

    def start(log, *arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
        with log.open("a") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "icckd", *map(str, arguments)],
                stdout=file,
                stderr=file,
                env=environment,
                cwd=ROOT,
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


class Federation:
    """A server and three clients, and what they say."""

    def __init__(self, start, folder, rounds):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.start, self.folder = start, folder
        self.shared = ("--server", address, "--patience", 120, "--federated.rounds", rounds, *SMALL)
        self.log = folder / "server.log"

    def server(self, *options):
        return self.start(self.log, "federated", "server", "--output", self.folder / "run", *self.shared, *options)

    def client(self, number, *options):
        log = self.folder / f"client{number}.log"
        return self.start(log, "federated", "client", "--client", number, *self.shared, *options)

    def history(self):
        path = self.folder / "run" / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_client_that_dies_and_returns_takes_part_again(started, tmp_path):
    pytest.importorskip("flwr")
    federation = Federation(started, tmp_path, rounds=40)
    server, clients = federation.server(), [federation.client(number) for number in range(3)]
    until(lambda: len(federation.history()) >= 2)
    clients[1].kill()
    until(lambda: federation.history()[-1]["clients"] == 2)
    clients[2].send_signal(signal.SIGSTOP)  # The round waits for it, and so for the one that comes back.
    clients[1] = federation.client(1)
    time.sleep(15)
    clients[2].send_signal(signal.SIGCONT)
    assert server.wait(240) == 0
    assert [client.wait(60) for client in clients] == [0, 0, 0]
    said, history = federation.log.read_text(), federation.history()
    assert said.count("client 1 is here") == 2
    assert "client 1 is gone; the round goes on without it" in said
    assert len(history) == 40
    assert [record["clients"] for record in history[:2]] == [3, 3]
    assert 2 in [record["clients"] for record in history]
    assert history[-1]["clients"] == 3
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["student"]["test_accuracy"] > 0.2


@pytest.mark.slow
def test_a_server_that_is_stopped_goes_on_to_the_bits_of_one_process(started, tmp_path):
    pytest.importorskip("flwr")
    federation = Federation(started, tmp_path, rounds=12)
    server, clients = federation.server(), [federation.client(number) for number in range(3)]
    until(lambda: len(federation.history()) >= 3)
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 143
    server = federation.server("--resume")
    assert server.wait(240) == 0
    assert [client.wait(60) for client in clients] == [0, 0, 0]
    alone = started(tmp_path / "alone.log", "distill", "--student.loss.method", "pkd", "--federated.rounds", 12,
                    "--output", tmp_path / "alone", *SMALL)  # fmt: skip
    assert alone.wait(240) == 0
    one, other = (folder / "student" / "model.safetensors" for folder in (tmp_path / "run", tmp_path / "alone"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_client_with_other_settings_is_told_which_and_ends(started, tmp_path):
    pytest.importorskip("flwr")
    federation = Federation(started, tmp_path, rounds=3)
    server = federation.server()
    other = federation.client(0, "--student.learning_rate", 0.2)
    assert other.wait(240) == 2
    refusal = "client 0 has student.learning_rate 0.2; it is 0.1 at the server"
    assert refusal in (tmp_path / "client0.log").read_text().splitlines()[-1]
    assert refusal in federation.log.read_text()
    clients = [federation.client(number) for number in range(3)]
    assert server.wait(240) == 0
    assert [client.wait(60) for client in clients] == [0, 0, 0]


def test_without_flower_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr.client", None)
    with pytest.raises(ValueError, match=r"needs flwr, .* pip install 'icckd\[federated\]'"):
        flower()


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_a_port_that_is_taken_and_a_host_that_is_none_are_told(host):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"{host}:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"--server {address} cannot be listened at"):
            serve(address, lambda manager: pytest.fail("it listens"))
