"""Staged distillation: its losses against loops in float64, the remembered predictions, the stages that it pairs."""

import math

import pytest
import torch

from icckd.errors import UserError
from icckd.methods import Network, Outputs, Pair, Samples
from icckd.methods.staged import Staged, StagedSettings, similarity_correlation
from icckd.settings import Settings, StudentLossSettings, StudentSettings, check

CLASSES, IMAGES, ROWS = 4, 12, 7
OWN = {"stage1": (3, 6, 6), "stage2": (4, 4, 4), "stage3": (5, 2, 2)}
OTHER = {"stage1": (6, 8, 8), "stage2": (7, 3, 5), "stage3": (8, 1, 1)}
YES, NO = torch.tensor(True), torch.tensor(False)


def make(own=OWN, other=OTHER, **settings):
    torch.manual_seed(1)
    pair = Pair(Network(5, CLASSES, own), Network(9, CLASSES, other), torch.arange(IMAGES) % CLASSES)
    return Staged(StagedSettings(**settings), pair, "auto").double()


def answers(seed, maps, rows=ROWS):
    random = torch.Generator().manual_seed(seed)
    images = {name: torch.randn(rows, *shape, generator=random, dtype=torch.float64) for name, shape in maps.items()}
    return Outputs(torch.empty(0), 2 * torch.randn(rows, CLASSES, generator=random, dtype=torch.float64), images)


def samples(seed=5):
    random = torch.Generator().manual_seed(seed)
    indices = torch.randperm(IMAGES, generator=random)[:ROWS]
    return Samples(torch.arange(IMAGES)[indices] % CLASSES, indices)


def close(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-11)


def correlation(own, other):
    """Pearson's, of the cosines of every pair of rows."""

    def cosines(x):
        return [
            float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) for i in range(len(x)) for j in range(len(x)) if i != j
        ]

    a, b = cosines(own), cosines(other)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def moments(projection, own, other):
    """Image by image, channel by channel."""
    total = 0.0
    for image in range(ROWS):
        flat = own[image].flatten(1)
        for channel, weight in enumerate(projection.weight.flatten(1)):
            values = weight @ flat + projection.bias[channel]
            theirs = other[image, channel].flatten()
            deviations = [((x - x.mean()).square().mean() + 1e-5).sqrt() for x in (values, theirs)]
            total = total + (values.mean() - theirs.mean()) ** 2 + (deviations[0] - deviations[1]) ** 2
    return total / (ROWS * other.shape[1])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_loss_is_its_formula(number):
    method = make(temperature=3.0, kd_weight=0.7, moments_weight=0.4, mixture=0.3, confidence=0.6, decay=0.75)
    own, other, which = answers(number, OWN), answers(9, OTHER), samples()
    leaves = [own.logits.requires_grad_(), *(x.requires_grad_() for x in own.maps.values())]
    found = method(number, own, other, which)
    soft, hard = 0.0, 0.0
    for row in range(ROWS):
        p, q = (torch.exp(x[row] / 3) / torch.exp(x[row] / 3).sum() for x in (own.logits, other.logits))
        soft = soft + 9 * sum(q[c] * (q[c] / p[c]).log() for c in range(CLASSES)) / ROWS
        once = torch.exp(other.logits[row]) / torch.exp(other.logits[row]).sum()
        for c in range(CLASSES):
            label = float(which.labels[row] == c)
            wanted = 0.7 * label + 0.3 * once[c] if once.max() >= 0.6 else label
            hard = hard - wanted * own.logits[row].log_softmax(0)[c] / ROWS
    stages = list(OWN)[:number]
    raw = [math.exp(correlation(own.maps[s].detach().mean((2, 3)), other.maps[s].mean((2, 3)))) for s in stages]
    weights = [x / sum(raw) for x in raw]
    pairs = zip(weights, method.projections, stages, strict=False)
    apart = sum(w * moments(project, own.maps[s], other.maps[s]) for w, project, s in pairs)
    expected = {"cross_entropy": hard, "kd": soft, "moments": apart, "loss": hard + 0.7 * soft + 0.4 * apart}
    expected |= {f"weight_{stage}": w for stage, w in zip(stages, weights, strict=True)}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        close(found[name], value)
    leaves += method.parameters()
    for own_gradient, wanted in zip(
        *(torch.autograd.grad(x, leaves, allow_unused=True) for x in (found["loss"], expected["loss"])), strict=True
    ):
        assert (own_gradient is None) == (wanted is None)
        if wanted is not None:
            close(own_gradient, wanted)


def test_some_images_are_sure_and_some_are_not():
    """So that the test above compares both."""
    largest = answers(9, OTHER).logits.softmax(1).amax(1)
    assert 0 < (largest >= 0.6).sum() < ROWS


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_images_to_correlate_weigh_all_stages_alike(rows):
    method, which = make(), samples()
    which = Samples(which.labels[:rows], which.indices[:rows])
    losses = method(3, answers(1, OWN, rows), answers(2, OTHER, rows), which)
    assert losses["loss"].isfinite()
    for stage in OWN:
        close(losses[f"weight_{stage}"], 1 / 3)


def test_similarities_correlate_as_they_should():
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    wide = torch.cat([3 * rows, torch.zeros(9, 2)], dim=1)
    assert similarity_correlation(rows, wide).item() == pytest.approx(1, abs=1e-5)
    assert similarity_correlation(rows, torch.ones(9, 4)) == 0
    other = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    assert similarity_correlation(rows, other).item() == pytest.approx(correlation(rows, other), abs=1e-5)


def test_predictions_are_remembered_by_image_where_the_step_was_taken():
    method, which = make(decay=0.75), samples()
    views = [answers(seed, OTHER) for seed in range(4)]
    p = [view.logits.softmax(1) for view in views]
    remembered = (torch.zeros_like(p[0]), p[1], 0.75 * p[1] + 0.25 * p[2], 0.75 * p[1] + 0.25 * p[2])
    for view, taken, expected in zip(views, (NO, YES, YES, NO), remembered, strict=True):
        method(1, answers(0, OWN), view, which)
        method.after_step(taken)
        close(method.averages[which.indices], expected)
    others = [i for i in range(IMAGES) if i not in which.indices]
    assert not method.averages[others].any()
    assert "averages" in method.state_dict()


def test_a_step_learns_from_what_is_remembered_and_its_own_view():
    method, which = make(decay=0.75, mixture=1.0, confidence=0.0), samples()
    first, second = answers(1, OTHER), answers(2, OTHER)
    method(1, answers(0, OWN), first, which)
    method.after_step(YES)
    own = answers(0, OWN)
    wanted = 0.75 * first.logits.softmax(1) + 0.25 * second.logits.softmax(1)
    close(method(1, own, second, which)["cross_entropy"], -(wanted * own.logits.log_softmax(1)).sum(1).mean())


def test_networks_with_more_stages_are_paired_from_the_last_back():
    more = {**OTHER, "stage4": (9, 1, 1)}
    for own, other, names in (
        (OWN, more, (tuple(OWN), ("stage2", "stage3", "stage4"))),
        (more, OWN, (("stage2", "stage3", "stage4"), tuple(OWN))),
    ):
        method = make(own, other)
        assert (method.student_stages, method.teacher_stages) == names
    named = make(student_stages=["stage2", "stage3"], teacher_stages=["stage3", "stage1"])
    assert [head.in_features for head in named.heads] == [4]
    assert [(x.in_channels, x.out_channels) for x in named.projections] == [(4, 8), (5, 6)]


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"student_stages": ["stage9"]}, "student_stages names 'stage9'; the student's stages are stage1, stage2, sta"),
        ({"teacher_stages": ["stage9"]}, "teacher_stages names 'stage9'; the teacher's stages are stage1"),
        ({"student_stages": ["stage1", "stage3"], "teacher_stages": ["stage1"]}, "pairs 2 stages .* with 1 of"),
        (
            {"student_stages": ["stage2", "stage1"]},
            "student_stages is stage2, stage1; it should be in the student's",
        ),
        ({"student_stages": ["stage1", "stage2"]}, "student_stages is stage1, stage2; .* end in its last, stage3: the"),
    ],
)
def test_stages_that_do_not_fit_are_refused(named, words):
    with pytest.raises(UserError, match=rf"^student\.loss\.staged[. ]{words}"):
        make(**named)


def test_a_network_without_stages_is_refused():
    with pytest.raises(UserError, match=r"^student\.loss\.method staged needs a stage in both networks$"):
        make(own={})


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [("temperature", 0.0, "above 0"), ("mixture", 1.5, "in \\[0, 1\\]"), ("confidence", -0.1, "in \\[0, 1\\]"),
     ("decay", 1.0, "in \\[0, 1\\)"), ("kd_weight", -1.0, "0 or more"), ("student_stages", [], "one or more stages")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(setting, value, wanted):
    settings = Settings(student=StudentSettings(loss=StudentLossSettings(method="staged")))
    check(settings)
    setattr(settings.student.loss.staged, setting, value)
    with pytest.raises(UserError, match=rf"^student\.loss\.staged\.{setting} is .*{wanted}"):
        check(settings)
