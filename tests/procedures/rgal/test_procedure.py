"""The whole training: what it learns, where it goes on after a kill, and what it cannot do."""

import pytest
import torch

from icckd.errors import TrainingDiverged, UserError
from icckd.methods import EvaluationSet
from icckd.procedures import procedure_of
from icckd.training import Checkpoint
from tests.procedures.rgal.conftest import make_lesson
from tests.procedures.trainings import Killed, fit

EPOCHS, STEPS = 2, 3


def begun(**changes):
    torch.manual_seed(4)
    procedure = procedure_of(make_lesson(**{"student.epochs": EPOCHS, "student.loss.rgal.capacity": 30}, **changes))
    return procedure, procedure.training()


def whole(training):
    return {**training.task.whole_state(), "random": torch.get_rng_state()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    _, training = begun()
    fit(training, tmp_path_factory.mktemp("whole"))
    return {name: x.clone() for name, x in whole(training).items()}


@pytest.mark.parametrize(("kill_after", "every"), [(1, 1), (3, 1), (4, 0), (5, 2)])
def test_killed_anywhere_it_ends_in_the_same_bits(uninterrupted, tmp_path, kill_after, every):
    _, training = begun()
    with pytest.raises(Killed):
        fit(training, tmp_path, every=every, kill_after=kill_after)
    torch.manual_seed(77)
    _, training = begun()
    training.restore(Checkpoint(tmp_path).load())
    fit(training, tmp_path, every=every)
    found = whole(training)
    assert found.keys() == uninterrupted.keys()
    different = [name for name, x in found.items() if not torch.equal(x, uninterrupted[name])]
    assert different == []


def test_everything_learns_and_the_pool_fills(uninterrupted):
    procedure, training = begun()
    assert len(training.batches) == STEPS
    start = {name: x.clone() for name, x in training.task.whole_state().items()}
    assert len(uninterrupted["pool.images"]) == 30
    learned = [name for name in start if name.startswith(("model.", "method.", "synthesis.generator."))]
    assert len(learned) > 20
    assert [name for name in learned if torch.equal(start[name], uninterrupted[name])] == []
    optimised = {id(p) for group in training.optimizer._optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in procedure.task.synthesis.generator.parameters()}


def test_a_generator_that_diverges_ends_the_training_and_keeps_its_checkpoint(tmp_path, monkeypatch):
    procedure, training = begun(**{"student.loss.rgal.synthesis_steps": 8})
    made, losses = procedure.task.synthesis, procedure.task.synthesis.losses
    fit_until = []

    def broken(*given):
        fit_until.append(1)
        found = losses(*given)
        return {"loss": found["loss"] * (float("inf") if len(fit_until) > 8 else 1)}

    monkeypatch.setattr(made, "losses", broken)
    with pytest.raises(TrainingDiverged, match="the generator's loss"):
        fit(training, tmp_path)
    assert Checkpoint(tmp_path).load()["epoch"] == 1


def test_findings_are_the_latest_images_of_each_class(tmp_path):
    procedure, training = begun()
    fit(training, tmp_path)
    nothing = EvaluationSet([], torch.empty(0), lambda images: pytest.fail("asked about test images"))
    found = procedure.findings(nothing)
    pool = procedure.task.pool
    kept = [int((pool.labels == label).sum()) for label in range(10)]
    assert found.numbers == {"images_made": 20 * EPOCHS, "images_kept_by_class": kept}
    images, labels, confidences = (found.tensors[f"image{name}"] for name in ("s", "_labels", "_confidences"))
    assert labels.tolist() == [label for label in range(10) for _ in range(min(kept[label], 8))]
    for label in range(10):
        assert torch.equal(images[labels == label], pool.images[pool.labels == label][-8:])
    assert images.dtype == torch.uint8
    assert ((confidences > 0.05) & (confidences <= 1)).all()


def test_a_teacher_without_batch_normalisation_is_refused():
    lesson = make_lesson()
    for layer in lesson.teacher.model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean = None
    with pytest.raises(UserError, match="the teacher, convnet-small, has no batch normalisations"):
        procedure_of(lesson)


def test_a_batch_larger_than_the_first_images_is_refused():
    with pytest.raises(UserError, match=r"student\.batch_size is 21, more than student\.loss\.rgal\.images, 20"):
        procedure_of(make_lesson(**{"student.batch_size": 21}))


def test_other_ways_of_a_step(tmp_path):
    _, training = begun(**{"student.accumulate": 2, "student.autocast": True})
    fit(training, tmp_path)
    assert all(record["train_loss"] > 0 for record in training.history)
