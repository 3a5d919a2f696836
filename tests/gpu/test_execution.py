"""How every loss runs on a GPU: the same bits each time, no waiting, in streams and graphs, and compiled."""

import pytest
import torch

from tests.gpu.losses import LOSSES


@pytest.fixture(params=LOSSES)
def make(request, target):
    """Makes a step of each loss that the backend has."""
    function, operator = LOSSES[request.param]
    target.require(operator)
    return lambda seed=0: function(target, seed)


def assert_same_bits(actual, expected):
    for x, y in zip(actual, expected, strict=True):
        assert x.isfinite().all()
        assert torch.equal(x, y)


def test_the_same_bits_a_thousand_times(make, target):
    step = make()
    first = step()
    assert_same_bits(first, first)
    # Compared on the device, so that a thousand steps wait for it once.
    same = torch.ones((), dtype=torch.bool, device=target.device)
    for _ in range(target.choose(1000, 2)):
        for x, y in zip(step(), first, strict=True):
            assert x.shape == y.shape
            same &= (x == y).all()
    assert same


def test_nothing_waits_for_the_device(make, target):
    step = make()
    expected = step()
    with target.without_synchronisation():
        again = step()
    assert_same_bits(again, expected)


def test_a_captured_graph_follows_its_inputs(make, target):
    step = make()
    replay = target.captured(step)
    for seed in (1, 2):
        other = make(seed)
        step.overwrite(other)
        assert_same_bits(replay(), other())


def test_streams_do_not_disturb_each_other(make, target):
    steps = [make(seed) for seed in range(target.choose(8, 2))]
    expected = [step() for step in steps]
    target.synchronize()
    results = []
    for step in steps:
        with target.on_new_stream():
            results.append(step())
    target.synchronize()
    for result, alone in zip(results, expected, strict=True):
        assert_same_bits(result, alone)


def test_compiles_whole(make, target):
    step = make()
    expected = step()
    torch._dynamo.reset()
    step.loss = torch.compile(step.loss, fullgraph=True, backend=target.choose("inductor", "aot_eager"))
    for x, y in zip(step(), expected, strict=True):
        torch.testing.assert_close(x, y)
