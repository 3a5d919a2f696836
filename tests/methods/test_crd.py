"""crd against its formula, written densely in float64, over several steps."""

import torch
from torch.nn.functional import normalize

from tests.methods.conftest import IMAGES

K, TAU, MOMENTUM = 6, 0.07, 0.5


def double(parameter):
    return parameter.detach().double()


def contrast(v, bank, index, z):
    """Two-way NCE of (B, dim) `v` against the rows of `bank`, the positive first; z None: n · mean of the batch."""
    h = torch.exp((bank[index] * v[:, None, :]).sum(2) / TAU)
    z = IMAGES * h.mean() if z is None else z
    h, c = h / z, K / IMAGES
    return -(torch.log(h[:, 0] / (h[:, 0] + c)) + torch.log(c / (h[:, 1:] + c)).sum(1)).mean(), z


def test_losses_banks_and_normalisers_over_three_steps(distillation, monkeypatch):
    task = distillation.task("crd", crd={"negatives": K, "dim": 12}).eval()
    crd = task.methods["crd"]
    drawn = []
    draw = crd.sampler.draw
    monkeypatch.setattr(crd.sampler, "draw", lambda *a, **b: (drawn.append(draw(*a, **b)), drawn[-1])[1])
    banks = [double(side.bank) for side in (crd.student, crd.teacher)]
    for bank in banks:
        torch.testing.assert_close(bank.norm(dim=1), torch.ones(IMAGES, dtype=torch.float64), rtol=1e-6, atol=0)
    normalisers = [None, None]
    for _ in range(3):
        batch = distillation.batch()
        found = task(batch)["crd"]
        index = torch.cat([batch.indices[:, None], drawn[-1]], dim=1)
        assert (distillation.labels[index[:, 1:]] != batch.labels[:, None]).all()
        embeddings = []
        for side, model in ((crd.student, distillation.student), (crd.teacher, distillation.teacher)):
            features = double(model(batch.views[0])[0])
            embeddings.append(normalize(features @ double(side.linear.weight).T + double(side.linear.bias)))
        own, normalisers[0] = contrast(embeddings[0], banks[1], index, normalisers[0])
        other, normalisers[1] = contrast(embeddings[1], banks[0], index, normalisers[1])
        torch.testing.assert_close(found.double(), own + other, rtol=1e-4, atol=0)
        task.after_step(torch.tensor(True))
        for bank, v in zip(banks, embeddings, strict=True):
            bank[batch.indices] = normalize(MOMENTUM * bank[batch.indices] + (1 - MOMENTUM) * v)
        for bank, side in zip(banks, (crd.student, crd.teacher), strict=True):
            torch.testing.assert_close(double(side.bank), bank, rtol=1e-5, atol=1e-6)


def test_a_skipped_step_changes_neither_bank_nor_normaliser(distillation):
    task = distillation.task("crd", crd={"negatives": K})
    before = {key: value.clone() for key, value in task.methods["crd"].state_dict().items()}
    task(distillation.batch())
    after = task.methods["crd"].state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
