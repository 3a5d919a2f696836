"""Anti-bias soft labels: the losses and the temperatures' controller against loops in float64."""

import pytest
import torch

from icckd.methods import Network, Pair
from icckd.methods.absld import Absld, AbsldSettings

CLASSES, ROWS = 5, 17
YES, NO = torch.tensor(True), torch.tensor(False)


def make(**settings):
    labels = torch.zeros(0, dtype=torch.int64)
    pair = Pair(Network(3, CLASSES, {}), Network(3, CLASSES, {}), labels)
    method = Absld(AbsldSettings(**settings), pair, "auto").double()
    random = torch.Generator().manual_seed(1)
    for temperatures in (method.adversarial, method.natural):
        temperatures.temperature.uniform_(0.6, 3, generator=random)
    return method


def logits(seed, missing=None):
    """The student's about attacked and natural images, the teacher's, and labels, of which one may be `missing`."""
    random = torch.Generator().manual_seed(seed)
    rows = 2 * torch.randn(3, ROWS, CLASSES, generator=random, dtype=torch.float64)
    labels = torch.randint(CLASSES, (ROWS,), generator=random)
    if missing is not None:
        labels[labels == missing] = (missing + 1) % CLASSES
    return *rows, labels


def divergence(student, teacher, temperature):
    """KL(softmax(teacher / τ) ‖ softmax(student)) of one row."""
    soft, said = (teacher / temperature).softmax(0), student.softmax(0)
    return sum(soft[c] * (soft[c] / said[c]).log() for c in range(CLASSES))


@pytest.mark.parametrize("weight", [5 / 6, 0.25])
def test_the_loss_weighs_both_divergences_from_labels_as_soft_as_their_class(weight):
    method = make(adversarial_weight=weight)
    adversarial, natural, teacher, labels = logits(2)
    adversarial.requires_grad_()
    natural.requires_grad_()
    losses = method(adversarial, natural, teacher, labels)
    expected = {}
    for name, student in (("adversarial", adversarial), ("natural", natural)):
        temperature = getattr(method, name).temperature
        rows = [divergence(student[i], teacher[i], temperature[labels[i]]) for i in range(ROWS)]
        expected[name] = sum(rows) / ROWS
        torch.testing.assert_close(losses[f"{name}_divergence"], expected[name])
    loss = weight * expected["adversarial"] + (1 - weight) * expected["natural"]
    torch.testing.assert_close(losses["loss"], loss)
    found, wanted = (torch.autograd.grad(x, [adversarial, natural]) for x in (losses["loss"], loss))
    torch.testing.assert_close(found, wanted)


def test_the_attack_raises_the_divergence_from_the_attacked_images_labels():
    method = make()
    student, _, teacher, labels = logits(3)
    temperature = method.adversarial.temperature
    expected = sum(divergence(student[i], teacher[i], temperature[labels[i]]) for i in range(ROWS))
    torch.testing.assert_close(method.attacked(student, teacher, labels), expected)


def follow(temperature, batches, rate, lowest, highest):
    """The temperatures after an epoch of batches (student's logits, labels), image by image."""
    errors = {}
    for student, labels in batches:
        for row, label in zip(student, labels.tolist(), strict=True):
            errors.setdefault(label, []).append(-row.log_softmax(0)[label])
    risk = {label: sum(of) / len(of) for label, of in errors.items()}
    mean = sum(risk.values()) / len(risk)
    gap = {label: value - mean for label, value in risk.items()}
    largest = max(abs(value) for value in gap.values())
    moved = temperature.clone()
    for label, value in gap.items():
        moved[label] = min(max(moved[label] - rate * value / largest, lowest), highest)
    return moved


def test_harder_classes_get_sharper_labels_after_an_epoch_and_not_within_it():
    method = make(rate=0.7, lowest=0.5, highest=3.0)
    before = {name: getattr(method, name).temperature.clone() for name in ("adversarial", "natural")}
    taken = [logits(4, missing=2), logits(5, missing=2)]
    for batch, outcome in ((taken[0], YES), (logits(6), NO), (taken[1], YES)):
        method.begin(0)
        method(*batch)
        method.after_step(outcome)
        assert all(torch.equal(getattr(method, name).temperature, before[name]) for name in before)
    for epoch in (1, 1):  # Before its second step nothing moves.
        method.begin(epoch)
        for place, (name, temperature) in enumerate(before.items()):
            seen = [(batch[place].float().double(), batch[3]) for batch in taken]
            expected = follow(temperature, seen, 0.7, 0.5, 3.0)
            found = getattr(method, name).temperature
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
            assert found[2] == temperature[2]
            assert (found != temperature).sum() == CLASSES - 1
    findings = method.findings().numbers
    assert findings["natural_temperatures"] == method.natural.temperature.tolist()
    assert findings["adversarial_temperatures"] == method.adversarial.temperature.tolist()


def test_classes_that_are_as_hard_as_each_other_keep_their_temperatures():
    method = make()
    before = method.natural.temperature.clone()
    alike, labels = torch.zeros(CLASSES, CLASSES, dtype=torch.float64), torch.arange(CLASSES)
    method(alike, alike, alike, labels)
    method.after_step(YES)
    for epoch in (1, 2):  # Of the second epoch nothing is known at all.
        method.begin(epoch)
        assert torch.equal(method.natural.temperature, before)


def test_a_step_that_is_not_finite_leaves_no_trace():
    method = make()
    adversarial, natural, teacher, labels = logits(7)
    method(adversarial * torch.nan, natural * torch.nan, teacher, labels)
    method.after_step(NO)
    assert not method.adversarial.counts.any()
    assert not method.natural.sums.any()
