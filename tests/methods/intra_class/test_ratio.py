"""The control of the ratio of distances: what it estimates, and which way it moves the weight."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from icckd.methods import TrainingSet
from icckd.methods.intra_class.ratio import LARGEST_WEIGHT, SMALLEST_WEIGHT, RatioControl
from tests.methods.intra_class.answers import CLASSES, DIM, answers, method

# By how much of the error the level moves in an epoch, and the weight differs from it.
RATE, GAIN = 1.0, 8.0
TAKEN, SKIPPED = torch.tensor(True), torch.tensor(False)
SOME, NONE = torch.tensor(0.3), torch.tensor(0.0)


def images(seed, count, spread=0.7):
    """Features around a direction for each class."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % CLASSES
    return centres[labels] + spread * torch.randn(count, DIM, generator=random), labels


def controlled(target, images=400):
    control = RatioControl(target, 0.1, CLASSES, DIM)
    control.images = images
    return control


def ratio_of(features, labels):
    """As the report defines it."""
    rows = normalize(features.double())
    by_class = [rows[labels == c] for c in range(CLASSES)]
    intra = [(1 - x @ x.T).sum() / (len(x) * (len(x) - 1)) for x in by_class]
    means = normalize(torch.stack([x.mean(0) for x in by_class]))
    pairs = [1 - means[a] @ means[b] for a in range(CLASSES) for b in range(a)]
    return (sum(intra) / CLASSES) / (sum(pairs) / len(pairs))


def test_what_many_images_have_is_estimated_from_the_last_ones():
    features, labels = images(1, 4000)
    control = controlled(0.5)
    estimates = []
    for rows, classes in zip(features.split(10), labels.split(10), strict=True):
        control.follow(rows, classes, SOME, TAKEN, None)
        estimates.append(control.ratio.item())
    settled = torch.tensor(estimates[50:])
    assert settled.mean().item() == pytest.approx(ratio_of(features, labels).item(), rel=0.04)
    assert settled.std() < 0.2 * settled.mean()


def test_one_large_batch_tells_what_the_report_would():
    features, labels = images(2, 2000)
    control = controlled(0.5)
    control.follow(features, labels, SOME, TAKEN, None)
    assert control.ratio.item() == pytest.approx(ratio_of(features, labels).item(), rel=0.01)


def test_the_weight_answers_the_error_and_its_level_follows():
    features, labels = images(3, 400)
    fewer, _ = images(7, 400, spread=0.65)
    ratio = ratio_of(features, labels).item()
    for target in (ratio / 1.2, 1.2 * ratio):
        control, level = controlled(target, images=1000), 0.1
        for rows in (features, fewer):
            control.follow(rows, labels, SOME, TAKEN, None)
            error = math.log(target / control.ratio.item())
            assert rows is fewer or (error > 0) == (target > ratio)
            level *= math.exp(RATE * 0.4 * error)
            assert control.level.item() == pytest.approx(level, rel=1e-4)
            assert control.weight.item() == pytest.approx(level * math.exp(GAIN * error), rel=1e-3)


def test_it_has_to_know_how_many_images_there_are():
    with pytest.raises(ValueError, match="images is None; it should be the number of training images"):
        RatioControl(0.5, 0.1, CLASSES, DIM).follow(*images(1, 40), SOME, TAKEN, None)


def test_the_weight_stays_within_its_bounds():
    features, labels = images(4, 40)
    for target, bound in ((1e-3, SMALLEST_WEIGHT), (1e3, LARGEST_WEIGHT)):
        control = controlled(target)
        for _ in range(2000):
            control.follow(features, labels, SOME, TAKEN, None)
        assert control.weight.item() == pytest.approx(bound)


@pytest.mark.parametrize(("active", "taken"), [(NONE, TAKEN), (SOME, SKIPPED)])
def test_without_an_anchor_or_a_step_the_weight_stays(active, taken):
    features, labels = images(5, 40)
    if taken is SKIPPED:
        features = features.fill_(torch.nan)
    control = controlled(0.5)
    control.follow(features, labels, active, taken, None)
    assert control.weight.item() == pytest.approx(0.1)
    assert (control.ratio > 0) == (taken is TAKEN)
    assert all(buffer.isfinite().all() for buffer in control.buffers())


def test_before_two_classes_have_been_met_twice_there_is_no_ratio():
    features, _ = images(6, 6)
    control = controlled(0.5)
    for labels in ([0, 0, 0, 1, 2, 3], [0, 0, 1, 1, 2, 3]):
        assert control.ratio == 0
        assert control.weight.item() == pytest.approx(0.1)
        control.follow(features, torch.tensor(labels), SOME, TAKEN, None)
    assert control.ratio > 0


def test_the_method_uses_the_weight_of_before_the_step():
    teacher = method(weight=0.3, target_ratio=4.0, margin=-1.0)
    teacher.prepare(TrainingSet(torch.zeros(50), (1, 8, 8)))
    reported, ratio = [], 0.0
    for seed in range(3):
        weight = teacher.control.weight.item()
        outputs, samples = answers(seed, 2)
        losses = teacher(outputs, samples)
        torch.testing.assert_close(losses["loss"], losses["cross_entropy"] + weight * losses["intra_class"])
        reported.append(losses["weight"])
        teacher.after_step(TAKEN)
        assert losses["weight"].item() == pytest.approx(weight)
        assert losses["running_ratio"] == pytest.approx(ratio)
        ratio = teacher.control.ratio.item()
    assert len({weight.item() for weight in reported}) == 3
