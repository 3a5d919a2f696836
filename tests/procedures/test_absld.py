"""A robust student's task: what it is asked about, in parts too, and a training that is stopped anywhere."""

import pytest
import torch
from torch import nn

from icckd.data import Batch, Batches
from icckd.errors import Interrupted
from icckd.methods import Pair
from icckd.methods.absld import Absld, AbsldSettings
from icckd.models import build_model
from icckd.procedures.absld import AbsldTask
from icckd.settings import TrainingSettings
from icckd.training import Checkpoint, FrozenTeacher, Training
from icckd.training.accumulation import accumulate
from icckd.training.tasks.task import describe
from tests.procedures.trainings import fit

CLASSES, ROWS = 3, 12
MEAN, STD = [0.4], [0.25]


def network(arch="convnet-small", seed=1):
    torch.manual_seed(seed)
    return build_model(arch, 1, CLASSES, 8)


def task_of(student, **settings):
    teacher = network("convnet-large", seed=2)
    frozen = FrozenTeacher(teacher, ([0.5], [0.5]), (MEAN, STD))
    pair = Pair(describe(student), describe(teacher), torch.zeros(0, dtype=torch.int64))
    chosen = AbsldSettings(**{"epsilon": 0.1, "step_size": 0.03, "steps": 3, **settings})
    return AbsldTask(student, frozen, Absld(chosen, pair, "auto"), MEAN, STD)


def batch(seed=5):
    random = torch.Generator().manual_seed(seed)
    pixels = torch.rand(ROWS, 1, 8, 8, generator=random)
    labels = torch.randint(CLASSES, (ROWS,), generator=random)
    return Batch(((pixels - MEAN[0]) / STD[0],), labels, torch.arange(ROWS))


class Watched(nn.Module):
    """A network that remembers what it was asked, and in which mode."""

    def __init__(self, model):
        super().__init__()
        self.model, self.asked = model, []
        self.channels, self.classes, self.image_shape = model.channels, model.classes, model.image_shape
        self.feature_dim, self.stage_names = model.feature_dim, model.stage_names

    def forward(self, images, stages=()):
        self.asked.append((images.detach().clone(), self.training))
        return self.model(images, stages) if stages else self.model(images)


def test_the_student_is_asked_about_images_attacked_in_evaluation_mode_and_as_they_are():
    student = Watched(network())
    task, of = task_of(student).train(), batch()
    student.asked.clear()
    losses = task(of)
    *attack, (rows, training) = student.asked
    assert [mode for _, mode in attack] == 3 * [False]
    assert training
    attacked, natural = rows.chunk(2)
    (images,) = of.views
    assert torch.equal(natural, images)
    moved = (attacked - images) * STD[0]
    assert 0.05 < moved.abs().max() <= 0.1 + 1e-6
    assert (attacked * STD[0] + MEAN[0]).clamp(0, 1).sub(attacked * STD[0] + MEAN[0]).abs().max() < 1e-6
    # From near the images, and upwards.
    assert 0 < ((attack[0][0] - images) * STD[0]).abs().max() < 0.01
    teacher = task.teacher(images).logits
    student.eval()
    before, after = (task.method.attacked(student(x)[1], teacher, of.labels) for x in (images, attacked))
    assert after > before
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in student.model.parameters())
    assert all(parameter.grad is None for parameter in task.teacher.model.parameters())


@pytest.mark.parametrize("parts", [2, 5])
def test_in_parts_gradients_are_those_of_the_images_that_were_attacked_first(parts):
    """Normalisation sees a part at a time, and its running statistics move between the passes: once per step."""
    student, of = Watched(network("resnet8")), batch()
    task = task_of(student, adversarial_weight=0.7).train()
    student.asked.clear()
    torch.manual_seed(4)
    losses = accumulate(task, of, parts, lambda: torch.autocast("cpu", enabled=False))
    asked = [images for images, training in student.asked if training]
    first, second = asked[:parts], asked[parts:]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    drawn = torch.rand(3)
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}

    student.zero_grad()
    of_parts = [student.model(images)[1].chunk(2) for images in first]
    adversarial, natural = (torch.cat(rows) for rows in zip(*of_parts, strict=True))
    expected = task.method(adversarial, natural, task.teacher(of.views[0]).logits, of.labels)["loss"]
    expected.backward()
    torch.testing.assert_close(losses["loss"], expected.detach())
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    # Random numbers go on as if nothing had been asked twice.
    torch.manual_seed(4)
    for part in of.views[0].tensor_split(parts):
        torch.randn_like(part)
    assert torch.equal(torch.rand(3), drawn)


def training():
    random = torch.Generator().manual_seed(7)
    images = torch.randint(256, (24, 1, 8, 8), dtype=torch.uint8, generator=random)
    labels = torch.randint(CLASSES, (24,), generator=random)
    batches = Batches(
        images, labels, batch_size=8, mean=MEAN, std=STD, augmentation=None, views=1, shuffle=True, seed=0,
        device="cpu", drop_last=True,
    )  # fmt: skip
    settings = TrainingSettings(epochs=3, batch_size=8, learning_rate=0.05)
    return Training(task_of(network(), steps=2), batches, settings)


def test_stopped_in_an_epoch_or_between_and_resumed_ends_in_the_same_bits(tmp_path):
    torch.manual_seed(0)
    whole = fit(training(), tmp_path / "whole")
    temperatures = whole.task.method.findings().numbers
    assert len(set(temperatures["adversarial_temperatures"])) > 1
    for stop_after in (2, 3, 5):
        folder = tmp_path / str(stop_after)
        torch.manual_seed(0)
        with pytest.raises(Interrupted):
            fit(training(), folder, stop_after=stop_after)
        resumed = training()
        torch.manual_seed(99)
        resumed.restore(Checkpoint(folder).load())
        fit(resumed, folder)
        state, expected = resumed.task.state_dict(), whole.task.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
        assert resumed.task.method.findings().numbers == temperatures
