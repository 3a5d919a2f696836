"""Steps as a CUDA graph, with a stand-in for it: what is captured when, and what is replayed on which numbers."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from icckd.data import Batch
from icckd.training import capture
from icckd.training.capture import WARM_UP, CapturedSteps


class Device:
    """What there is of `torch.cuda`: a capture runs a step and undoes it, as a GPU would only note it down."""

    def __init__(self):
        self.total = torch.zeros(())
        self.factor = 1.0
        self.captures = self.replays = self.computed = 0
        self.within = False

    def step(self, batch):
        factor, source = self.factor, batch.views[0]

        def compute():
            self.total += factor * source.sum()
            return self.total

        if self.within:
            self.noted = compute
            return self.total
        self.computed += 1
        return compute().clone()

    @contextmanager
    def graph(self, graph, pool, capture_error_mode):
        assert (pool, capture_error_mode) == ("pool", "thread_local")
        self.within, self.captures = True, self.captures + 1
        yield
        self.within = False
        noted = self.noted

        def replay():
            self.replays += 1
            noted()

        graph.replay = replay

    def patched(self):
        stream = SimpleNamespace(wait_stream=lambda other: None)
        cuda = SimpleNamespace(
            graph_pool_handle=lambda: "pool",
            CUDAGraph=SimpleNamespace,
            graph=self.graph,
            Stream=lambda: stream,
            current_stream=lambda: stream,
            stream=lambda of: nullcontext(),
        )
        return mock.patch.object(capture.torch, "cuda", cuda)


def batch(value, rows=4):
    return Batch((torch.full((rows, 2), float(value)),), torch.zeros(rows), torch.zeros(rows))


@pytest.fixture
def device():
    made = Device()
    with made.patched():
        yield made


def test_steps_are_replayed_on_the_batches_that_are_given(device):
    steps = CapturedSteps(device.step)
    losses = [float(steps(batch(value))) for value in range(10)]
    assert losses == [8 * sum(range(value + 1)) for value in range(10)]
    assert (device.computed, device.captures, device.replays) == (WARM_UP, 1, 10 - WARM_UP)


def test_what_comes_from_python_stays_until_it_is_captured_anew(device):
    steps = CapturedSteps(device.step)
    for _ in range(WARM_UP + 1):
        steps(batch(1))
    device.factor = 10.0
    before = device.total.clone()
    assert float(steps(batch(1)) - before) == 8
    steps.renew()
    before = device.total.clone()
    assert float(steps(batch(1)) - before) == 80
    assert device.captures == 2


def test_a_smaller_batch_is_computed_as_it_is(device):
    steps = CapturedSteps(device.step)
    for _ in range(WARM_UP + 1):
        steps(batch(1))
    before = device.total.clone()
    assert float(steps(batch(1, rows=3)) - before) == 6
    assert (device.computed, device.replays) == (WARM_UP + 1, 1)
