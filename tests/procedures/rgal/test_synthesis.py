"""What a generator learns, and what it leaves as it is."""

import pytest
import torch

from icckd.errors import TrainingDiverged
from icckd.methods.rgal import Rgal
from icckd.procedures.rgal.synthesis import Synthesis
from icckd.training.loop import MAX_SKIPS_IN_A_ROW
from tests.procedures.rgal.conftest import make_lesson


def synthesis(lesson):
    torch.manual_seed(8)
    return Synthesis(lesson.losses(Rgal), lesson)


def state_of(*modules):
    return [x.clone() for module in modules for x in module.state_dict().values()]


def test_networks_stay_as_they_are(lesson):
    made = synthesis(lesson)
    lesson.student.train()
    before = state_of(lesson.student, lesson.teacher.model)
    images, labels = made.make(0)
    assert images.shape == (20, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert all(map(torch.equal, state_of(lesson.student, lesson.teacher.model), before))
    assert lesson.student.training
    assert all(p.grad is None and p.requires_grad for p in lesson.student.parameters())
    seen = (images / 255 - torch.tensor(lesson.data.mean)) / torch.tensor(lesson.data.std)
    assert labels.tolist() == lesson.teacher(seen).logits.argmax(1).tolist()


@pytest.mark.parametrize("term", ["batch_statistics", "one_hot", "adversarial"])
def test_the_generator_learns_what_each_term_asks_for(monkeypatch, term):
    others = {"batch_statistics", "one_hot", "adversarial", "synthesis_triplet"} - {term}
    changes = {**dict.fromkeys(others, 0.0), term: 1.0, "synthesis_steps": 12, "generator_rate": 0.02}
    made = synthesis(make_lesson(**{f"student.loss.rgal.{name}": value for name, value in changes.items()}))
    # Otherwise networks that have learned nothing say next to nothing, and agree about nothing.
    made.teacher.model.classifier.weight.data *= 20
    made.student.load_state_dict(made.teacher.model.state_dict())
    made.student.classifier.weight.data += torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    losses, found = made.losses, []

    def noted(*given):
        found.append(losses(*given))
        return found[-1]

    monkeypatch.setattr(made, "losses", noted)
    made.make(0)
    first, last = (sum(step[term].item() for step in found[part]) for part in (slice(2), slice(-2, None)))
    assert len(found) == 12
    assert last < first - 0.02 * abs(first)


def test_what_is_made_follows_from_state_seed_and_epoch():
    one, other = synthesis(make_lesson()), synthesis(make_lesson())
    images, _ = one.make(0)
    torch.rand(3)  # Whatever else draws random numbers.
    assert torch.equal(images, other.make(0)[0])
    saved = {name: x.clone() for name, x in one.state().items()}
    following, _ = one.make(1)
    assert not torch.equal(following, images)
    fresh = synthesis(make_lesson())
    fresh.restore(saved)
    assert torch.equal(fresh.make(1)[0], following)
    fresh.restore(saved)
    assert not torch.equal(fresh.make(2)[0], following)
    assert not torch.equal(synthesis(make_lesson(seed=6)).make(0)[0], images)


def test_steps_that_are_not_finite_are_skipped_and_too_many_in_a_row_end_it(lesson, monkeypatch):
    made, calls = synthesis(lesson), []
    losses = made.losses

    def broken(noise, wanted, draws):
        calls.append(1)
        found = losses(noise, wanted, draws)
        return found if len(calls) == 2 else {"loss": found["loss"] * float("nan")}

    monkeypatch.setattr(made, "losses", broken)
    made.make(0)
    assert all(x.isfinite().all() for x in made.state().values())
    steps = [x.item() for name, x in made.state().items() if name.endswith(".step")]
    assert set(steps) == {1.0}
    made.method.settings.synthesis_steps = MAX_SKIPS_IN_A_ROW + 1
    with pytest.raises(TrainingDiverged, match=r"the generator's loss .* 6 steps in a row before epoch 3"):
        made.make(2)


def test_confidences_are_the_teacher_s_probabilities(lesson):
    made = synthesis(lesson)
    images, labels = made.make(0)
    seen = (images / 255 - torch.tensor(lesson.data.mean)) / torch.tensor(lesson.data.std)
    probabilities = lesson.teacher(seen).logits.softmax(1)
    expected = [probabilities[i, label].item() for i, label in enumerate(labels.tolist())]
    torch.testing.assert_close(made.confidences(images, labels), torch.tensor(expected))


def test_a_rehearsal_leaves_no_trace(lesson):
    made = synthesis(lesson)
    before = {name: x.clone() for name, x in made.state().items()}
    made.rehearse()
    assert all(torch.equal(x, before[name]) for name, x in made.state().items())
    assert all(p.grad is None for p in made.generator.parameters())
