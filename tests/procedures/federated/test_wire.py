"""What travels arrives as it was; what is something else is refused, and costs nothing."""

import io
import pickle

import numpy as np
import pytest
import torch

from icckd.procedures.federated.messages import Answer, Question, state_of
from icckd.procedures.federated.wire import (
    Refused,
    answer_from_wire,
    answer_to_wire,
    question_from_wire,
    question_to_wire,
)
from tests.procedures.federated.conftest import CLASSES, federation, small_network
from tests.procedures.trainings import fit, the_same

STATE = state_of(small_network())
TRAIN = Question("train", 2, STATE, ((0, 2), (1, 3)), (STATE, STATE))


class WireClients:
    """Clients of this process that get every question, and send every answer, as bytes and plain values."""

    def __init__(self, clients):
        self._clients = clients
        self.images = [len(client.part) for client in clients]

    def ask(self, question, whom, on_step):
        for number in sorted(whom):
            client = self._clients[number]
            arrives = question_from_wire(*question_to_wire(question), question.network, CLASSES)
            answer = client.answer(arrives, lambda loss, steps: None)
            on_step(None, answer.steps)
            yield number, answer_from_wire(*answer_to_wire(answer), question, self.images[number], CLASSES)


def test_a_training_over_the_wire_ends_in_the_same_bits(tmp_path):
    near, far = (
        fit(federation().training(), tmp_path / "near"),
        fit(federation(WireClients).training(), tmp_path / "far"),
    )
    assert the_same(near, far)


@pytest.mark.parametrize("question", [TRAIN, Question("confusion", 1, STATE), Question("expert", 0, STATE, ((1, 2),))])
def test_a_question_arrives_as_it_was(question):
    arrives = question_from_wire(*question_to_wire(question), STATE, CLASSES)
    assert (arrives.kind, arrives.round, arrives.groups) == (question.kind, question.round, question.groups)
    for sent, got in zip((question.network, *question.experts), (arrives.network, *arrives.experts), strict=True):
        assert all(torch.equal(sent[name], got[name]) and sent[name].dtype == got[name].dtype for name in sent)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("something was unpickled",))


def saved(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


ARRAYS = {
    "a pickle": (lambda array: pickle.dumps(Bomb()), "no array in NumPy's format"),
    "an array of objects": (lambda array: saved(np.array([Bomb()]), allow_pickle=True), "it should be float32"),
    "nothing": (lambda array: b"", "no array in NumPy's format"),
    "half of it": (lambda array: array[:-40], "it should have"),
    "more than it": (lambda array: array + b"0", "it should have"),
    "another shape": (lambda array: saved(np.zeros((3, 2), np.float32)), r"\(3, 2\); it should be float32"),
    "the promise of far more": (lambda array: array.replace(b"(6, 1, 3, 3)", b"(10**9, 3, )"), "no array"),
    "far more": (lambda array: array.replace(b"(6, 1, 3, 3), }", b"(999999999,), }"), r"\(999999999,\); it should be"),
    "another type": (lambda array: saved(np.zeros((6, 1, 3, 3))), "is float64"),
    "not a number": (lambda array: saved(np.full((6, 1, 3, 3), np.nan, np.float32)), "is not finite"),
    "infinity": (lambda array: saved(np.full((6, 1, 3, 3), np.inf, np.float32)), "is not finite"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_that_is_another_is_refused(kind):
    change, words = ARRAYS[kind]
    arrays, values = question_to_wire(TRAIN)
    assert np.load(io.BytesIO(arrays[0])).shape == (6, 1, 3, 3)
    with pytest.raises(Refused, match=words):
        question_from_wire([change(arrays[0]), *arrays[1:]], values, STATE, CLASSES)
    trained = Answer(5, STATE)
    arrays, values = answer_to_wire(trained)
    with pytest.raises(Refused, match=words):
        answer_from_wire([change(arrays[0]), *arrays[1:]], values, TRAIN, 5, CLASSES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "burn"}, "the kind of question is 'burn'"),
        ({"kind": None}, "the kind of question is None"),
        ({"round": -1}, "the round is -1"),
        ({"round": True}, "the round is True"),
        ({"groups": "[[0, 2], [2, 3]]"}, "the groups are not"),
        ({"groups": "[[0, 2], [1, 4]]"}, "the groups are not"),
        ({"groups": "[[0], [1, 2]]"}, "the groups are not"),
        ({"groups": "[" * 5000}, "the groups are not lists of classes"),
        ({"groups": "7"}, "the groups are not lists of classes"),
        ({"groups": "[[0, 2]]"}, "of 2 networks"),
        ({"kind": "confusion"}, "there are 2 groups beside"),
        ({"kind": "expert", "groups": "[]"}, "there are 0 groups beside"),
    ],
)
def test_a_question_that_is_none_is_refused(changes, words):
    arrays, values = question_to_wire(TRAIN)
    with pytest.raises(Refused, match=words):
        question_from_wire(arrays, values | changes, STATE, CLASSES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 6}, "made of 6 images; the client has 5"),
        ({"images": 10**9}, "the client has 5"),
        ({"images": 5.0}, "the client has 5"),
        ({"steps": 1, "skipped": 2}, "steps of 1"),
        ({"steps": None}, "steps of None"),
        ({"loss:loss": float("nan")}, "finite numbers"),
        ({"loss:loss": "low"}, "finite numbers"),
    ],
)
def test_an_answer_that_is_none_is_refused(changes, words):
    arrays, values = answer_to_wire(Answer(5, STATE, losses={"loss": 1.0}, steps=3))
    assert answer_from_wire(arrays, values, TRAIN, 5, CLASSES).losses == {"loss": 1.0}
    with pytest.raises(Refused, match=words):
        answer_from_wire(arrays, values | changes, TRAIN, 5, CLASSES)


@pytest.mark.parametrize("matrix", [torch.full((4, 4), -1), torch.ones(4, 4).long(), torch.zeros(3, 3).long()])
def test_a_confusion_matrix_of_other_images_is_refused(matrix):
    question = Question("confusion", 0, STATE)
    right = torch.diag(torch.tensor([1, 2, 1, 1]))
    arrives = answer_from_wire(*answer_to_wire(Answer(5, confusion=right)), question, 5, CLASSES)
    assert torch.equal(arrives.confusion, right)
    with pytest.raises(Refused, match="confusion matrix"):
        answer_from_wire(*answer_to_wire(Answer(5, confusion=matrix)), question, 5, CLASSES)
