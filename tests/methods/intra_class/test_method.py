"""The paper's teacher: which views it asks for, and what its loss is of."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from icckd.errors import UserError
from icckd.reference import intra_class_contrastive
from icckd.settings import DataSettings, MemorySettings, Settings, TeacherLossSettings, TeacherSettings
from icckd.settings.checks import check
from tests.methods.intra_class.answers import ROWS, answers, halves, margins, method


@pytest.mark.parametrize(
    ("weight", "of", "views"), [(0, "first", 1), (0, "both", 2), (0.1, "first", 2), (0.1, "both", 2)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_of_the_views_that_it_names(weight, of, views, smoothing):
    teacher = method(weight=weight, cross_entropy_views=of, label_smoothing=smoothing, margin=0.3)
    assert teacher.views == views
    outputs, samples = answers(5, views)
    logits = outputs.logits.double()
    seen = logits if of == "both" else logits[:ROWS]
    targets = samples.labels.repeat(len(seen) // ROWS)
    expected = cross_entropy(seen, targets, label_smoothing=smoothing)
    losses = teacher(outputs, samples)
    torch.testing.assert_close(losses["cross_entropy"].double(), expected, rtol=1e-5, atol=1e-6)
    if weight:
        gate = margins(logits[:ROWS], samples.labels) > 0.3
        expected = expected + weight * intra_class_contrastive(*halves(outputs), samples.labels, gate=gate)
    torch.testing.assert_close(losses["loss"].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "gate_of"),
    [
        ({"gate": "soft", "gate_width": 0.3, "margin": 0.4}, lambda m: 1 / (1 + torch.exp(-(m - 0.4) / 0.3))),
        ({"gate": "quantile", "gate_share": 0.25}, lambda m: m >= m.sort(descending=True).values[5]),
        ({"gate": "quantile", "gate_share": 1.0}, lambda m: m >= -1),
    ],
)
def test_a_gate_weighs_the_anchors(settings, gate_of):
    outputs, samples = answers(6, 2)
    gate = gate_of(margins(outputs.logits[:ROWS], samples.labels)).double()
    expected = intra_class_contrastive(*halves(outputs), samples.labels, gate=gate)
    losses = method(weight=0.3, **settings)(outputs, samples)
    torch.testing.assert_close(losses["intra_class"].double(), expected, rtol=1e-5, atol=1e-6)
    assert losses["active_fraction"].item() == pytest.approx(gate.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("warmup", "decline", "progress", "share"),
    [
        (0.5, 0, 0, 0),
        (0.5, 0, 0.25, 0.5),
        (0.5, 0, 0.75, 1),
        (0, 0.4, 0.5, 1),
        (0, 0.4, 0.9, 0.25),
        (0.5, 0.5, 0.75, 0.5),
    ],
)
def test_the_weight_rises_and_falls(warmup, decline, progress, share):
    outputs, samples = answers(7, 2)
    losses = method(weight=0.3, margin=-1.0, weight_warmup=warmup, weight_decline=decline)(
        outputs, samples._replace(progress=progress)
    )
    assert losses["weight"].item() == pytest.approx(0.3 * share, abs=1e-7)
    expected = losses["cross_entropy"] + 0.3 * share * losses["intra_class"]
    torch.testing.assert_close(losses["loss"], expected)
    assert losses["intra_class"] > 0


@pytest.mark.parametrize("settings", [{}, {"weight": 0, "weight_warmup": 0.5}])
def test_a_weight_that_does_not_change_is_not_reported(settings):
    assert set(method(**settings)(*answers(8, 2))) == {
        *("loss", "cross_entropy", "intra_class", "active_fraction", "mean_margin")
    }


def test_by_default_nothing_is_trained_or_remembered():
    assert not method().state_dict()


def test_the_second_view_is_strong_where_there_is_one():
    assert method().strong_views == 0
    assert method(strong_second_view=True).strong_views == 1
    assert method(strong_second_view=True, weight=0).strong_views == 0
    assert method(strong_second_view=True, weight=0, cross_entropy_views="both").strong_views == 1
    streamed = DataSettings(name="image-folder", streaming=True)
    teacher = TeacherSettings(loss=TeacherLossSettings(strong_second_view=True))
    check(Settings(teacher=teacher))
    with pytest.raises(UserError, match=r"data\.streaming is true; it should be false with teacher\.loss"):
        check(Settings(data=streamed, teacher=teacher))
    with pytest.raises(UserError, match=r"teacher\.loss\.strong_second_view is true; it should be false for signals"):
        check(Settings(data=DataSettings(name="signals"), teacher=teacher))


def with_loss(positive="second-view", capacity=0, **loss):
    return Settings(
        teacher=TeacherSettings(
            loss=TeacherLossSettings(**loss), positive=positive, memory=MemorySettings(capacity=capacity)
        )
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (with_loss(space="projection", capacity=4), "space is projection; it should be features where teacher.memory"),
        (with_loss("second-view-detached", space="soft-labels"), "space is soft-labels; it should be features where"),
        (with_loss("second-view-detached", neighbours=2), "neighbours is 2; it should be 0 where teacher.positive is"),
        (with_loss("previous-epoch", strong_second_view=True), "strong_second_view is true; it should be false where"),
        (with_loss(projection_dim=0), "projection_dim is 0; it should be 1 or more"),
        (with_loss(gate_share=0.0), r"gate_share is 0.0; it should be in \(0, 1\]"),
        (with_loss(gate_width=0.0), "gate_width is 0.0; it should be a finite number above 0"),
        (with_loss(weight_warmup=1.5), r"weight_warmup is 1.5; it should be in \[0, 1\]"),
        (with_loss(weight=1e300, weight_warmup=0.5), r"weight is 1e\+300; it should be in \[0, 3\.4e\+38\]"),
        (Settings(teacher=TeacherSettings(positive="previous-epoch", epochs=1)), "there is no epoch before"),
        (with_loss(weight_warmup=0.7, weight_decline=0.5), "weight_decline is 0.5; it should be in .* 1 at most"),
        (with_loss(neighbours=-1), "neighbours is -1; it should be a finite number, 0 or more"),
        (with_loss(target_ratio=0.0), "target_ratio is 0.0; it should be null, or a finite number above 0"),
        (with_loss(target_ratio=0.5, weight=0.0), r"loss.weight is 0.0; it should be in \[0.0001, 10\] beside target"),
        (with_loss(target_ratio=0.5, weight_warmup=0.5), "weight_warmup is 0.5; it should be 0 beside target_ratio"),
        (with_loss(target_ratio=0.5, weight_decline=0.5), "weight_decline is 0.5; it should be 0 beside target_ratio"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check(settings)


def test_what_goes_together_is_taken():
    check(with_loss(space="soft-labels", gate="soft", weight_warmup=0.5, weight_decline=0.5, neighbours=3))
    check(with_loss("second-view-detached", strong_second_view=True, gate="quantile", target_ratio=0.5))
