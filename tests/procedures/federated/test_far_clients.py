"""Clients that come, go, come back and send nonsense, behind what stands for Flower's connections."""

import json
import sys
from collections import namedtuple
from functools import partial
from types import ModuleType, SimpleNamespace

import pytest
import torch

from icckd.procedures.federated.flower import FarClients
from icckd.procedures.federated.messages import state_of
from icckd.procedures.federated.wire import answer_to_wire, question_from_wire
from tests.procedures.federated.conftest import CLASSES, federation
from tests.procedures.trainings import fit, the_same

SHARED = {"seed": "0", "student.learning_rate": "0.05"}


@pytest.fixture(autouse=True)
def messages(monkeypatch):
    common = ModuleType("flwr.common")
    for name, fields in (("FitIns", "parameters config"), ("Parameters", "tensors tensor_type"),
                         ("GetPropertiesIns", "config")):  # fmt: skip
        setattr(common, name, namedtuple(name, fields))
    monkeypatch.setitem(sys.modules, "flwr", ModuleType("flwr"))
    monkeypatch.setitem(sys.modules, "flwr.common", common)
    monkeypatch.setattr("icckd.procedures.federated.flower._LOOK_SECONDS", 0.005)


class Connection:
    """To client `number`, which breaks at those questions, and sends what is not finite at these."""

    def __init__(self, place, number, breaks_at=(), spoils=(), settings=SHARED):
        self.cid, self.number, self.settings = place, number, settings
        self.breaks_at, self.spoils = breaks_at, spoils
        self.client = federation().clients[number if isinstance(number, int) and number < 3 else 0]
        self.asked, self.refusals = 0, []

    def get_properties(self, ins, timeout, group_id):
        return SimpleNamespace(properties={"client": self.number, "settings": json.dumps(self.settings)})

    def fit(self, ins, timeout, group_id):
        if "refused" in ins.config:
            self.refusals.append(ins.config["refused"])
            return None
        self.asked += 1
        if self.asked in self.breaks_at:
            raise ConnectionError
        like = state_of(self.client.workshop.network)
        question = question_from_wire(ins.parameters.tensors, ins.config, like, CLASSES)
        answer = self.client.answer(question, lambda loss, steps: None)
        if self.asked in self.spoils:
            answer.network["classifier.bias"][0] = torch.nan
        arrays, values = answer_to_wire(answer)
        return SimpleNamespace(parameters=SimpleNamespace(tensors=arrays), metrics=values)


class Network:
    """Who is connected; `then`, by how many times somebody looked, is done meanwhile."""

    def __init__(self, *connections, then=None):
        self.connections, self.then, self.looks = list(connections), then or {}, 0

    def all(self):
        self.looks += 1
        self.then.get(self.looks, lambda: None)()
        return {connection.cid: connection for connection in self.connections}


def trained(network, folder, patience=60):
    said = []
    clients_of = partial(FarClients, network, settings=SHARED, patience=patience, say=said.append)
    training = fit(federation(clients_of).training(), folder)
    return training, said


def test_those_that_always_answer_end_in_the_bits_of_one_process(tmp_path):
    near = fit(federation().training(), tmp_path / "near")
    network = Network(Connection("b", 1), Connection("c", 2))
    network.then = {6: lambda: network.connections.append(Connection("a", 0))}  # They begin when all have come.
    far, said = trained(network, tmp_path / "far")
    assert the_same(near, far)
    assert said[:2] == ["client 1 is here; there are 1 of 3", "client 2 is here; there are 2 of 3"]
    assert said[2:] == ["waiting for clients; there are 2 of 3", "client 0 is here; there are 3 of 3"]


def test_a_client_that_dies_is_left_out_until_it_is_back(tmp_path):
    first, again = Connection("x", 1, breaks_at=(2,)), Connection("y", 1)
    network = Network(Connection("a", 0), first, Connection("c", 2))
    fit_of = first.fit

    def dying(*arguments):
        try:
            return fit_of(*arguments)
        except ConnectionError:
            network.connections.remove(first)
            raise

    first.fit = dying
    network.then = {16: lambda: network.connections.append(again)}
    training, said = trained(network, tmp_path)
    assert "client 1 is gone; the round goes on without it" in said
    assert said[-1] == "client 1 is here; there are 3 of 3"
    assert first.asked == 2
    assert again.asked > 0
    assert [record["clients"] for record in training.history][::2] == [3, 3]


def test_an_answer_that_is_not_finite_is_refused_and_the_round_goes_on(tmp_path):
    spoilt = Connection("b", 1, spoils=(1,))
    training, said = trained(Network(Connection("a", 0), spoilt, Connection("c", 2)), tmp_path)
    assert "client 1's answer is refused: classifier.bias is not finite" in said
    assert [record["clients"] for record in training.history] == [2, 2, 2]
    assert spoilt.refusals
    assert spoilt.asked == 1
    assert all(x.isfinite().all() for x in training.model.state_dict().values())


@pytest.mark.parametrize(
    ("number", "settings", "words"),
    [
        (3, SHARED, "its --client is 3; it should be in [0, 3)"),
        (True, SHARED, "its --client is True"),
        (1, SHARED | {"seed": "1"}, "client 1 has seed 1; it is 0 at the server"),
        (1, {}, "client 1 has seed None; it is 0 at the server"),
    ],
)
def test_who_does_not_belong_is_refused(tmp_path, number, settings, words):
    stranger = Connection("b", number, settings=settings)
    training, said = trained(Network(stranger, Connection("a", 0), Connection("c", 2)), tmp_path, patience=0.05)
    assert "the others have not come; it begins with 2 of 3 clients" in said
    assert any(line.startswith("a client is refused: ") and words in line for line in said)
    assert stranger.asked == 0
    assert training.history[-1]["clients"] == 2


def test_of_two_that_are_one_client_the_last_is_asked(tmp_path):
    old, new = Connection("x", 1), Connection("y", 1)
    trained(Network(Connection("a", 0), old, Connection("c", 2), new), tmp_path)
    assert (old.asked, new.asked > 0) == (0, True)
