"""The definitions and the public functions against torchdistill's losses, where it is installed: `make oracles`.

All in float64. Two of its losses are not what they are named after and are put right here: KDLoss scales by T² only
beside a cross-entropy, which is subtracted again, and SPKDLoss divides rows by their sums of magnitudes instead of
their Euclidean norms, which it is given instead.
"""

import pytest
import torch
from torch.nn.functional import normalize

from icckd import functional, reference

mid_level = pytest.importorskip("torchdistill.losses.mid_level")

PATHS = "student", "output", "teacher", "output"
both = pytest.mark.parametrize("module", [reference, functional], ids=["reference", "functional"])


def pair(generator, *shape):
    return tuple(2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64))


def assert_same(ours, theirs, student, teacher, tolerance=1e-9):
    """Value and gradient; `theirs` takes the outputs of modules by their names."""
    x, y = (student.clone().requires_grad_() for _ in range(2))
    actual, expected = ours(x, teacher), theirs({"student": {"output": y}}, {"teacher": {"output": teacher.clone()}})
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0)
    (gradient,), (other,) = torch.autograd.grad(actual, x), torch.autograd.grad(expected, y)
    torch.testing.assert_close(gradient, other, rtol=0, atol=tolerance * float(other.abs().max()))


@both
def test_kd(generator, module):
    student, teacher = pair(generator, 12, 5)
    kd = mid_level.KDLoss(*PATHS, temperature=4.0, alpha=0.5, beta=1.0)
    targets = torch.zeros(12, dtype=torch.int64)

    def theirs(s, t):
        return kd(s, t, targets) - 0.5 * kd.cross_entropy_loss(s["student"]["output"], targets)

    assert_same(lambda x, y: module.kd_kl(x, y, temperature=4.0), theirs, student, teacher)


@both
def test_dist(generator, module):
    student, teacher = pair(generator, 16, 10)
    options = {"beta": 0.5, "gamma": 2.0}
    theirs = mid_level.DISTLoss(*PATHS, tau=3.0, **options)
    assert_same(lambda x, y: module.dist(x, y, temperature=3.0, **options), theirs, student, teacher)


@both
def test_pkt(generator, module):
    student, teacher = pair(generator, 16, 10)
    assert_same(module.pkt, mid_level.PKTLoss(*PATHS), student, teacher)


@both
def test_similarity_preserving(generator, module, monkeypatch):
    student, teacher = pair(generator, 16, 10, 2, 2)
    monkeypatch.setattr(mid_level, "normalize", lambda x, _: normalize(x))
    theirs = mid_level.SPKDLoss("student", "teacher", "batchmean")
    assert_same(module.similarity_preserving, theirs, student, teacher)


@both
def test_attention_transfer(generator, module):
    student, teacher = pair(generator, 6, 5, 4, 3)
    stage = {name: {"path": name, "io": "output"} for name in ("student", "teacher")}
    assert_same(module.attention_transfer, mid_level.ATLoss({"stage": stage}), student, teacher)


@both
def test_rkd(generator, module):
    student, teacher = pair(generator, 12, 5)
    distance, angle = (mid_level.RKDLoss("student", "teacher", *factors, "mean") for factors in ((1, 0), (0, 1)))
    # Its distances come from a Gram matrix, which cancels.
    assert_same(module.rkd_distance, distance, student, teacher, tolerance=1e-7)
    assert_same(module.rkd_angle, angle, student, teacher)
