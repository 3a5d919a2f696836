"""Requests answered in order, by processes or without, whatever happens to those before."""

import os
import signal
from itertools import islice
from multiprocessing import active_children

import pytest
import torch

from icckd.data.augmentation import NOTHING
from icckd.data.streaming.decoders import Decoders
from icckd.data.streaming.pictures import Request, decode
from icckd.errors import UserError


@pytest.fixture(scope="module")
def requests(squares):
    paths = [str(path) for path in sorted((squares / "train").rglob("*.png"))]
    return [Request(paths[number : number + 1 + number % 3], 16, NOTHING) for number in range(len(paths) - 3)]


def assert_same(answers, requests):
    for answer, request in zip(answers, requests, strict=True):
        assert torch.equal(answer, decode(request))


@pytest.mark.parametrize("workers", [0, 2])
def test_answers_come_in_order_and_another_time_too(requests, workers):
    decoders = Decoders(workers)
    for _ in range(2):
        assert_same(decoders.run(requests, pin_memory=False), requests)
    first = {child.pid for child in active_children()}
    # Left early, and two at a time.
    assert_same(islice(decoders.run(requests, pin_memory=False), 2), requests[:2])
    assert {child.pid for child in active_children()} == first
    one, other = (decoders.run(iter(each), pin_memory=False) for each in (requests, requests[::-1]))
    for answer, another in zip(one, other, strict=True):
        torch.testing.assert_close((answer, another), (decode(requests[0]), decode(requests[-1])))
        break
    assert_same(one, requests[1:])
    assert_same(other, requests[-2::-1])
    del decoders, one, other
    assert active_children() == []


def test_requests_are_taken_ahead_but_not_all_at_once(requests):
    taken = []
    answers = Decoders(1).run((taken.append(0) or request for request in requests), pin_memory=False)
    next(answers)
    assert 2 < len(taken) < 15


def test_random_numbers_of_training_are_left_alone(requests):
    before = torch.get_rng_state()
    assert_same(Decoders(1).run(requests[:3], pin_memory=False), requests[:3])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_one_line_and_ends_nothing_else(requests, workers, tmp_path):
    decoders, bad = Decoders(workers), Request([str(tmp_path / "none.png")], 16, NOTHING)
    answers = decoders.run([*requests[:2], bad, *requests[:2]], pin_memory=False)
    assert_same(islice(answers, 2), requests[:2])
    with pytest.raises(UserError, match=r"^\S*none\.png is not an image that can be read: .*No such file[^\n]*$"):
        next(answers)
    assert_same(decoders.run(requests, pin_memory=False), requests)


@pytest.mark.slow  # PyTorch looks for its processes every five seconds.
def test_a_process_that_was_ended_is_told(requests):
    decoders, handler = Decoders(1), signal.getsignal(signal.SIGCHLD)
    answers = decoders.run(requests, pin_memory=False)
    next(answers)
    assert signal.getsignal(signal.SIGCHLD) == handler
    os.kill(active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"^data\.workers: a process that decodes images has ended: "):
        list(answers)
    assert_same(decoders.run(requests, pin_memory=False), requests)
