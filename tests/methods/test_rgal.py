"""The losses of relation-guided distillation against loops in float64, for both phases."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from icckd.errors import UserError
from icckd.methods import Network, Outputs, Pair, Samples
from icckd.methods.rgal import LEARNING, SYNTHESIS, Rgal, RgalSettings
from icckd.methods.triplets import triplet_loss

ROWS, CLASSES, DIM = 12, 4, 6
SIDE = Network(DIM, CLASSES, {"stage1": (3, 8, 8), "stage2": (5, 4, 4)})
TEACHER = Network(DIM, CLASSES, {"stage1": (2, 9, 9), "stage2": (4, 8, 8), "stage3": (6, 3, 3)})


def method(**settings):
    torch.manual_seed(2)
    return Rgal(replace(RgalSettings(), **settings), Pair(SIDE, TEACHER, torch.empty(0)), "reference").double()


def outputs(network, seed, scale=1.0):
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64).mul_(scale).requires_grad_()

    maps = {name: numbers(ROWS, *shape) for name, shape in network.maps.items()}
    return Outputs(numbers(ROWS, DIM), numbers(ROWS, CLASSES), maps)


def divergence(q_logits, p_logits):
    """KL(softmax(q) ‖ softmax(p)) of one row each, by a loop."""
    q, p = q_logits.exp() / q_logits.exp().sum(), p_logits.exp() / p_logits.exp().sum()
    return sum(q[c] * (q[c].log() - p[c].log()) for c in range(len(q)))


def same_triplets(student, labels, distances, **choices):
    """What `triplet_loss` is with the random numbers that are drawn next."""
    state = torch.get_rng_state()
    found = triplet_loss(student.features, labels, margin=0.3, distances=distances, **choices)
    torch.set_rng_state(state)
    return found


def test_the_generator_s_loss_is_the_formula_s():
    rgal = method(batch_statistics=0.7, one_hot=1.3, adversarial=2.0, synthesis_triplet=0.4, margin=0.3)
    student, teacher = outputs(SIDE, 1), outputs(TEACHER, 2, scale=2.0)
    wanted, statistics = torch.arange(ROWS) % CLASSES, torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    found = rgal.synthesis(student, teacher, statistics, wanted, torch.Generator().manual_seed(9))
    one_hot, against = 0, 0
    for i in range(ROWS):
        one_hot = one_hot - teacher.logits[i].log_softmax(0)[wanted[i]]
        if teacher.logits[i].argmax() == student.logits[i].argmax():
            against = against - divergence(teacher.logits[i], student.logits[i])
    assert against.item() < 0
    assert (teacher.logits.argmax(1) != student.logits.argmax(1)).any()
    triplet = triplet_loss(
        student.features, teacher.logits.argmax(1), margin=0.3, distances=SYNTHESIS, swapped=True,
        generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    assert triplet > 0
    expected = 0.7 * statistics + 1.3 * one_hot / ROWS + 2 * against / ROWS + 0.4 * triplet
    torch.testing.assert_close(found["loss"], expected)
    given = [statistics, student.features, student.logits, teacher.logits]
    for one, other in zip(torch.autograd.grad(found["loss"], given), torch.autograd.grad(expected, given), strict=True):
        torch.testing.assert_close(one, other)
        assert one.abs().sum() > 0


def test_the_student_s_loss_is_the_formula_s():
    rgal = method(temperature=20.0, features=0.6, triplet=0.4, margin=0.3)
    assert (rgal.student_stages, rgal.teacher_stages) == (("stage1", "stage2"), ("stage2", "stage3"))
    student, teacher = outputs(SIDE, 3), outputs(TEACHER, 4)
    labels = torch.arange(ROWS) % 3
    triplet = same_triplets(student, labels, LEARNING)
    rgal.eval()
    found = rgal.learning(student, teacher, Samples(labels, torch.arange(ROWS)))
    kl = sum(divergence(t / 20, s / 20) for s, t in zip(student.logits, teacher.logits, strict=True)) * 400 / ROWS
    stages = 0
    for number, (own, other, size) in enumerate((("stage1", "stage2", 8), ("stage2", "stage3", 3))):
        seen, wanted = (
            torch.nn.functional.adaptive_avg_pool2d(x, size) for x in (student.maps[own], teacher.maps[other])
        )
        layer, normalisation = rgal.projections[number][0]
        seen = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], seen)
        stages = stages + ((seen / (1 + normalisation.eps) ** 0.5).clamp(min=0) - wanted).square().mean()
    expected = kl + 0.6 * stages + 0.4 * triplet
    torch.testing.assert_close(found["loss"], expected)
    given = [student.features, student.logits, *student.maps.values(), rgal.projections[0][0][0].weight]
    for one, other in zip(torch.autograd.grad(found["loss"], given), torch.autograd.grad(expected, given), strict=True):
        torch.testing.assert_close(one, other)


def test_a_student_like_its_teacher_only_has_triplets():
    rgal = method(features=0.0)
    student = outputs(SIDE, 5)
    found = rgal.learning(student, student, Samples(torch.arange(ROWS) % 3, torch.arange(ROWS)))
    assert found["kl"].item() == pytest.approx(0, abs=1e-12)
    assert found["features"] == 0
    torch.testing.assert_close(found["loss"], 0.1 * found["triplet"])


def test_networks_without_stages_are_refused_unless_none_is_compared():
    pair = Pair(SIDE._replace(maps={}), TEACHER, torch.empty(0))
    with pytest.raises(UserError, match=r"student\.loss\.rgal\.features is 1, but the student has no stages"):
        Rgal(RgalSettings(), pair, "auto")
    assert not list(Rgal(RgalSettings(features=0.0), pair, "auto").parameters())


def test_one_hot_is_pytorch_s_cross_entropy():
    student, teacher = outputs(SIDE, 6), outputs(TEACHER, 7)
    wanted = torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1))
    found = method().synthesis(student, teacher, torch.zeros(()), wanted, torch.Generator())
    torch.testing.assert_close(found["one_hot"], cross_entropy(teacher.logits, wanted))


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"images": 0}, "images"), ({"capacity": 10, "images": 11}, "capacity"), ({"margin": -0.1}, "margin"),
        ({"generator_rate": 0.0}, "generator_rate"), ({"adversarial": float("inf")}, "adversarial"),
        ({"steps": 0}, "steps"), ({"temperature": 0.0}, "temperature"), ({"noise": 0}, "noise"),
    ],
)  # fmt: skip
def test_wrong_settings(changed, wrong):
    rules = replace(RgalSettings(), **changed).rules()
    assert [name for name, rule in rules.items() if not rule.holds] == [wrong]
