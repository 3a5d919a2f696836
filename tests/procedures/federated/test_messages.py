"""Answers are averaged by images, to the bit again after a restart."""

import pytest
import torch

from icckd.procedures.federated.messages import Answer, Question, Tally, state_of
from tests.procedures.federated.conftest import small_network


def answers(seed, count=3, classes=5):
    torch.manual_seed(seed)
    found = []
    for number in range(count):
        network = small_network()
        network(torch.randn(4, 1, 8, 8))  # Moves its running statistics.
        confusion = torch.randint(0, 9, (classes, classes))
        images = 3 + 10 * number
        found.append(Answer(images, state_of(network), confusion, {"loss": float(number)}, steps=2, skipped=number))
    return found


def test_networks_are_averaged_by_images_running_statistics_among_them():
    given, tally = answers(0), Tally()
    for client, answer in enumerate(given):
        tally.add(client, answer)
    mean, total = tally.network(given[0].network), sum(answer.images for answer in given)
    assert any("running_var" in name for name in mean)
    for name, tensor in mean.items():
        expected = torch.zeros_like(tensor, dtype=torch.float64)
        for answer in given:
            expected += answer.images / total * answer.network[name].double()
        assert tensor.dtype == given[0].network[name].dtype
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    assert tally.losses() == {"loss": pytest.approx((13 * 1 + 23 * 2) / total)}
    assert (tally.answered, tally.steps, tally.skipped) == ([0, 1, 2], 6, 3)
    assert torch.equal(tally.confusion, sum(answer.confusion for answer in given))


def test_a_tally_that_is_restored_ends_in_the_same_bits():
    given, whole, part = answers(1), Tally(), Tally()
    for client, answer in enumerate(given):
        whole.add(client, answer)
    part.add(0, given[0])
    part = Tally.restored(part.state())
    part.add(1, given[1])
    part = Tally.restored(part.state())
    part.add(2, given[2])
    one, other = whole.network(given[0].network), part.network(given[0].network)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (part.losses(), part.answered, part.images) == (whole.losses(), whole.answered, whole.images)


def test_nobody_s_answer_leaves_the_network():
    before, tally = answers(2)[0].network, Tally()
    tally.add(0, Answer(0))
    assert tally.network(before) is before


def test_bytes_are_those_of_the_tensors():
    (one, *_) = answers(3)
    of_network = sum(x.numel() * x.element_size() for x in one.network.values())
    assert one.bytes == of_network + 25 * 8
    assert Question("train", 0, one.network, ((0, 1),), (one.network,)).bytes == 2 * of_network
    assert Answer(0).bytes == 0
