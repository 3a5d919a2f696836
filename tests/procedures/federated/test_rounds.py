"""Rounds of clients: what they average, what they count, and that they go on where they stopped."""

import sys

import pytest
import torch

from icckd.data import Batches
from icckd.errors import Interrupted, TrainingDiverged, UserError
from icckd.procedures.federated.messages import Question, state_of
from icckd.procedures.federated.partition import partition
from icckd.training import Checkpoint
from tests.procedures.federated.conftest import CLASSES, federation, small_network
from tests.procedures.trainings import fit, the_same, without_time


def test_a_round_is_the_average_of_what_each_client_makes_of_the_network(tmp_path):
    """Against a loop of plain PyTorch: SGD with momentum over each client's batches."""
    changes = {"federated.rounds": 1, "student.loss.pkd.weight": 0, "federated.local_epochs": 2,
               "student.schedule": "step", "student.milestones": (0.5,), "student.weight_decay": 0}  # fmt: skip
    procedure = federation(**changes)
    data, start = procedure.lesson.data, state_of(procedure.lesson.student)
    training = fit(procedure.training(), tmp_path)
    parts = partition(data.train_labels, 3, 2.0, 0)
    mean = {name: torch.zeros_like(x, dtype=torch.float64) for name, x in start.items()}
    for part in parts:
        network = small_network().double()
        network.load_state_dict(start)
        sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        batches = Batches(
            data.train_images[part], data.train_labels[part], batch_size=min(12, len(part)), mean=data.mean,
            std=data.std, augmentation=None, views=1, shuffle=True, seed=0, device=torch.device("cpu"), drop_last=True,
        )  # fmt: skip
        for epoch in range(2):
            sgd.param_groups[0]["lr"] = (0.05, 0.005)[epoch]
            for batch in batches.epoch(epoch):
                sgd.zero_grad()
                torch.nn.functional.cross_entropy(network(batch.views[0].double())[1], batch.labels).backward()
                sgd.step()
        for name, tensor in network.state_dict().items():
            mean[name] += tensor * len(part) / len(data.train_labels)
    for name, tensor in training.model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), mean[name], rtol=2e-4, atol=2e-5)
    assert any((tensor - start[name]).abs().max() > 0.01 for name, tensor in training.model.state_dict().items())


def test_stopped_anywhere_and_resumed_ends_in_the_same_bits(tmp_path):
    whole = fit(federation().training(), tmp_path / "whole")
    steps = len(whole.batches)
    # In the warm-up, at its end, among the experts, with them; without a checkpoint for each client, too.
    for stop_after, every in ((2, 0), (steps, 1), (steps + 3, 0), (steps + 7, 1), (3 * steps, 0)):
        folder, first = tmp_path / str(stop_after), federation().training()
        with pytest.raises(Interrupted):
            fit(first, folder, every=every, stop_after=stop_after)
        again = federation().training()
        again.restore(Checkpoint(folder).load())
        assert again.epoch == first.epoch
        assert the_same(fit(again, folder, every=every), whole)


def test_what_was_killed_goes_on_from_every_checkpoint_to_the_same_bits(tmp_path, monkeypatch):
    """From whichever file it left: a kill between two of them leaves the first."""
    files, save = [], Checkpoint.save

    def keep(self, state):
        save(self, state)
        files.append(self.path.read_bytes())

    monkeypatch.setattr(Checkpoint, "save", keep)
    whole = fit(federation().training(), tmp_path / "whole")
    left = list(files)
    assert len(left) > 20
    for number in range(3, len(left), 8):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "state.pt").write_bytes(left[number])
        again = federation().training()
        again.restore(Checkpoint(folder).load())
        assert the_same(fit(again, folder), whole)


def test_experts_begin_as_the_network_and_only_they_change_the_rounds_after_the_warm_up(tmp_path):
    with_experts, alone = federation(), federation(**{"student.loss.pkd.weight": 0})
    one, other = fit(with_experts.training(), tmp_path / "a"), fit(alone.training(), tmp_path / "b")
    first, *_ = without_time(one.history)
    assert first == without_time(other.history)[0]
    assert one.history[-1]["train_pkd"] > 0
    assert other.history[-1]["train_pkd"] == 0
    found = with_experts.findings(None).numbers["federated"]
    assert found["groups"] == [["a", "c"], ["b", "d"]]
    assert found["warmup_rounds"] == 1
    found = alone.findings(None).numbers["federated"]
    assert (found["groups"], found["weak_classes"], found["warmup_rounds"]) == (None, None, 3)


@pytest.mark.parametrize(("rounds", "warmup"), [(1, 1), (2, 1), (7, 3)])
def test_the_warm_up_is_half_of_the_rounds_unless_given(tmp_path, rounds, warmup):
    procedure = federation(**{"federated.rounds": rounds, "student.loss.pkd.warmup_rounds": None})
    fit(procedure.training(), tmp_path)
    found = procedure.findings(None).numbers["federated"]
    assert found["warmup_rounds"] == warmup
    assert (found["groups"] is None) == (rounds == 1)


def test_bytes_of_every_round_are_counted_both_ways(tmp_path):
    procedure = federation()
    training = fit(procedure.training(), tmp_path)
    size = sum(x.numel() * x.element_size() for x in training.model.state_dict().values())
    counts = CLASSES * CLASSES * 8
    # Round 2 also asks for the confusion and trains two experts for two rounds; from then on both go with the network.
    to_clients = [3 * size, 3 * (size + 4 * size + 3 * size), 3 * 3 * size]
    to_server = [3 * size, 3 * (counts + 4 * size + size), 3 * size]
    assert [record["bytes_to_clients"] for record in training.history] == to_clients
    assert [record["bytes_to_server"] for record in training.history] == to_server
    found = procedure.findings(None).numbers["federated"]
    assert found["bytes_by_round"] == [a + b for a, b in zip(to_clients, to_server, strict=True)]
    assert found["bytes_sent"] == sum(found["bytes_by_round"])
    assert sum(found["images_by_client"]) == 48


def test_a_client_counts_which_classes_are_taken_for_which():
    procedure = federation()
    client, data = procedure.clients[1], procedure.lesson.data
    answer = client.answer(Question("confusion", 1, state_of(procedure.lesson.student)), lambda loss, steps: None)
    expected = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    network = procedure.lesson.student.eval()
    for place in client.part.tolist():
        image = (data.train_images[place : place + 1] / 255 - 0.5) / 0.3
        expected[data.train_labels[place], network(image)[1].argmax()] += 1
    assert torch.equal(answer.confusion, expected)


def test_a_client_with_no_images_of_a_group_leaves_its_expert_to_others():
    procedure = federation(**{"federated.skew": 0.01, "federated.clients": 4})
    question = Question("expert", 0, state_of(procedure.lesson.student), ((0, 2),))
    answers = [client.answer(question, lambda loss, steps: None) for client in procedure.clients]
    labels = procedure.lesson.data.train_labels
    of_group = [int(torch.isin(labels[client.part], torch.tensor([0, 2])).sum()) for client in procedure.clients]
    assert [answer.images for answer in answers] == [count if count > 1 else 0 for count in of_group]
    assert 0 in [answer.images for answer in answers]
    assert all((answer.network is None) == (answer.images == 0) for answer in answers)


def test_a_client_whose_network_is_not_finite_ends_the_training(tmp_path):
    procedure = federation()
    procedure.clients[1].workshop.lesson.data.std = (1e-38,)
    with pytest.raises(TrainingDiverged, match="of client 0 in round 1"):
        fit(procedure.training(), tmp_path)
    assert Checkpoint(tmp_path).load()["epoch"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"federated.clients": 25}, "federated.clients is 25; there are 48 training images"),
        ({"federated.rounds": 1}, "warmup_rounds is 1; it should be null, or below federated.rounds, 1"),
        ({"student.warmup_epochs": 4.0}, r"student.warmup_epochs is 4; it should be .* 3, at most"),
        ({"data.sampler": "class-balanced"}, "data.sampler is class-balanced"),
        ({"data.streaming": True}, "data.streaming is true"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_trained(changes, words):
    with pytest.raises(UserError, match=words):
        federation(**changes)


def test_another_training_s_checkpoint_is_refused(tmp_path):
    training = federation().training()
    state = training.state()
    for changes in ({"history": [1]}, {"confusion": torch.zeros(3, 3, dtype=torch.int64)}):
        with pytest.raises(UserError, match="does not fit"):
            training.restore(state | changes)
    for name in state:
        with pytest.raises(UserError, match="does not fit"):
            training.restore({key: value for key, value in state.items() if key != name})


def test_nothing_of_flower_is_loaded_without_it():
    assert not any(name.split(".")[0] == "flwr" for name in sys.modules)
