"""The optimisers on a small network: the updates of the papers, none where a step is not taken, resumed to the bits."""

import io
import sys

import pytest
import torch
from torch import nn

from icckd.errors import UserError
from icckd.experiment.experiment import Experiment
from icckd.settings import Settings, StudentSettings, TrainingSettings
from icckd.training.optimizers import make_optimizer

NAMES = ("sgd", "lars", "lamb")
RATES = (0.125, 0.0625, 0.25)  # To the bit in float32 too, as which sgd keeps them.


class Network(nn.Module):
    """Weights, a bias and normalisation, and a parameter that no loss ever reaches."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
        self.unused = nn.Parameter(torch.ones(2, 2))

    def forward(self, images):
        return self.layers(images)


def network():
    torch.manual_seed(5)
    return Network().double()


def optimizer(module, name, **settings):
    return make_optimizer(module, TrainingSettings(optimizer=name, weight_decay=0.03, momentum=0.8, **settings))


def gradients(module, seed):
    """Those of a loss on random images, of a norm above 1 for even seeds and below for odd ones."""
    images = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(seed)).to(module.unused.dtype)
    module.zero_grad()
    (module(images).square().mean() * (30.0 if seed % 2 == 0 else 0.1)).backward()


def train(module, made, seeds, taken=True):
    for seed in seeds:
        gradients(module, seed)
        made.set_rate(RATES[seed % 3])
        made.step(torch.tensor(taken))


def tensors(module, made):
    state = made.state_dict()["state"]
    return [p.detach().clone() for p in module.parameters()] + [x.clone() for of in state.values() for x in of.values()]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def sgd_by_hand(p, g, state, rate, decay, nesterov):
    g = g + decay * p
    state["m"] = 0.8 * state.get("m", 0) + g
    return p - rate * (g + 0.8 * state["m"] if nesterov else state["m"])


def lars_by_hand(p, g, state, rate, decay, nesterov):
    local = 0.001 * p.norm() / (g.norm() + decay * p.norm()) if p.ndim > 1 else 1.0
    g = local * (g + (decay * p if p.ndim > 1 else 0))
    return sgd_by_hand(p, g, state, rate, 0.0, nesterov)


def lamb_by_hand(p, g, state, rate, decay, nesterov):
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
    update = state["m"] / (state["v"].sqrt() + 1e-6) + decay * p
    ratio = p.norm() / update.norm() if p.ndim > 1 else 1.0
    return p - rate * ratio * update


BY_HAND = {"sgd": sgd_by_hand, "lars": lars_by_hand, "lamb": lamb_by_hand}


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_updates_are_those_of_the_paper(name, nesterov, decay_all):
    module, other = network(), network()
    # More than 10, from where on the library would take another norm than the paper's.
    with torch.no_grad():
        module.layers[0].weight.mul_(20), other.layers[0].weight.mul_(20)
    made = optimizer(module, name, nesterov=nesterov, decay_all=decay_all)
    states = {parameter: {} for parameter in other.parameters()}
    for seed in range(5):
        train(module, made, [seed])
        gradients(other, seed)
        norm = torch.stack([p.grad.norm() for p in other.parameters() if p.grad is not None]).norm()
        clip = 1 / max(1.0, norm.item()) if name == "lamb" else 1.0
        with torch.no_grad():
            for p in (p for p in other.parameters() if p.grad is not None):
                decay = 0.03 if p.ndim > 1 or decay_all else 0.0
                p.copy_(BY_HAND[name](p, p.grad * clip, states[p], RATES[seed % 3], decay, nesterov))
    for ours, theirs in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert torch.equal(module.unused, torch.ones(2, 2).double())


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_is_not_taken_is_as_if_it_had_not_been(name, before):
    module, other = network(), network()
    made, plain = optimizer(module, name), optimizer(other, name)
    train(module, made, range(before))
    train(other, plain, range(before))
    kept = tensors(module, made)
    gradients(module, before)
    module.layers[0].weight.grad.fill_(float("nan"))
    made.step(torch.tensor(False))
    train(module, made, [before + 1], taken=False)
    assert same(tensors(module, made), kept)
    module.layers[1].load_state_dict(other.layers[1].state_dict())  # its running statistics are none of ours
    train(module, made, range(3, 6))
    train(other, plain, range(3, 6))
    assert same(tensors(module, made), tensors(other, plain))
    assert not same(tensors(module, made), kept)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_goes_on_to_the_same_bits(name):
    module = network()
    made = optimizer(module, name)
    train(module, made, range(3))
    file = io.BytesIO()
    torch.save([module.state_dict(), made.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    again = network()
    again.load_state_dict(weights)
    resumed = optimizer(again, name)
    resumed.load_state_dict(state)
    assert same(tensors(again, resumed), tensors(module, made))
    train(module, made, range(3, 6))
    train(again, resumed, range(3, 6))
    assert same(tensors(again, resumed), tensors(module, made))


def test_without_the_library_it_says_what_to_install_before_anything_is_trained(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match=r"^student\.optimizer is lamb, .*pip install 'icckd\[large-batch\]'"):
        Experiment(Settings(student=StudentSettings(optimizer="lamb")))
    optimizer(network(), "sgd")
