"""Asking about a batch part by part: the losses and gradients of the whole, for every kind of task."""

import pytest
import torch
from torch import nn

from icckd.data import Batch
from icckd.models import build_model
from icckd.settings import MemorySettings, StudentLossSettings, TeacherLossSettings, TeacherSettings, TrainingSettings
from icckd.training import DistillationTask, FrozenTeacher, TeacherTask, Training
from icckd.training.accumulation import accumulate
from icckd.training.statistics import running_statistics_of

CLASSES, ROWS = 3, 11
NORMALIZATION = ((0.5,), (0.25,))


def network(dtype, normalised=False, dropout=0.0, seed=1):
    torch.manual_seed(seed)
    model = build_model("resnet8", channels=1, classes=CLASSES, image_size=8)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d) and not normalised:
                setattr(module, name, nn.Dropout(dropout))
    return model.to(dtype)


def batch(views, dtype):
    generator = torch.Generator().manual_seed(5)
    images = [torch.randn(ROWS, 1, 8, 8, generator=generator, dtype=dtype) for _ in range(views)]
    return Batch(tuple(images), torch.randint(CLASSES, (ROWS,), generator=generator), torch.arange(ROWS))


def teacher(dtype, **options):
    loss = TeacherLossSettings(weight=0.5, margin=-1.0, cross_entropy_views="both")
    return TeacherTask(network(dtype, **options), TeacherSettings(loss=loss), ROWS)


def detached_teacher(dtype):
    loss, memory = TeacherLossSettings(weight=0.5, margin=-1.0), MemorySettings(capacity=2, average=0.5)
    settings = TeacherSettings(loss=loss, memory=memory, positive="second-view-detached")
    return TeacherTask(network(dtype), settings, ROWS)


def student(dtype, **options):
    frozen = FrozenTeacher(network(dtype, normalised=True, seed=2), NORMALIZATION, NORMALIZATION)
    loss = StudentLossSettings(method="kd+rkd+hint+similarity-preserving")
    return DistillationTask(network(dtype, **options), frozen, torch.zeros(ROWS, dtype=torch.int64), loss).to(dtype)


def at_once(task, of):
    losses = task(of)
    losses["loss"].backward()
    return {name: value.detach() for name, value in losses.items()}


def in_parts(task, of, parts):
    return accumulate(task, of, parts, lambda: torch.autocast("cpu", enabled=False))


@pytest.mark.parametrize("make", [teacher, detached_teacher, student])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("parts", [2, 5])
def test_losses_and_gradients_are_those_of_the_whole_batch(make, dtype, tolerance, parts):
    torch.manual_seed(0)
    whole = make(dtype)
    torch.manual_seed(0)
    task, of = make(dtype), batch(whole.views, dtype)
    expected, found = at_once(whole, of), in_parts(task, of, parts)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(found[name] - value) <= tolerance * max(abs(value), 0.01), name
    largest = max(p.grad.abs().max() for p in whole.parameters() if p.grad is not None)
    for (name, p), q in zip(whole.named_parameters(), task.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert (p.grad - q.grad).abs().max() <= tolerance * largest, name


def test_the_loss_is_not_the_mean_of_those_of_its_parts():
    task = teacher(torch.float64)
    of = batch(2, torch.float64)
    halves = [Batch(tuple(v[i::2] for v in of.views), of.labels[i::2], of.indices[i::2]) for i in (0, 1)]
    assert abs(sum(at_once(task, half)["loss"] for half in halves) / 2 - at_once(task, of)["loss"]) > 1e-3


def test_both_passes_drop_the_same():
    """With other random numbers in the second, the gradient would not be that of the loss."""
    task, of = teacher(torch.float64, dropout=0.5), batch(2, torch.float64)
    torch.manual_seed(7)
    in_parts(task, of, 3)
    gradient = task.model.classifier.bias.grad.clone()
    step, losses, bias = 1e-6, [], task.model.classifier.bias.detach()
    for sign in (1, -1):
        bias[1] += sign * step
        torch.manual_seed(7)
        losses.append(in_parts(task, of, 3)["loss"].item())
        bias[1] -= sign * step
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(gradient[1].item(), rel=1e-5)


def test_running_statistics_move_once_a_part():
    task, of = teacher(torch.float32, normalised=True), batch(2, torch.float32)
    other = teacher(torch.float32, normalised=True)
    in_parts(task, of, 2)
    for rows in (slice(0, 6), slice(6, ROWS)):
        with torch.no_grad():
            other.ask(Batch(tuple(v[rows] for v in of.views), of.labels[rows], of.indices[rows]))
    for a, b in zip(running_statistics_of(task), running_statistics_of(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("rows", "sizes"), [(11, [3, 2, 2, 2, 2]), (5, [3, 2]), (1, [1])])
def test_no_part_is_a_single_image_of_several(rows, sizes, monkeypatch):
    task, whole = teacher(torch.float32), batch(2, torch.float32)
    of = Batch(tuple(view[:rows] for view in whole.views), whole.labels[:rows], whole.indices[:rows])
    ask, asked = task.ask, []
    monkeypatch.setattr(task, "ask", lambda part: asked.append(len(part.labels)) or ask(part))
    in_parts(task, of, 5)
    # One part is asked about once.
    assert asked == (2 * sizes if len(sizes) > 1 else sizes)


def test_the_loop_accumulates():
    class Batches:
        def __len__(self):
            return 4

    found = []
    for parts in (1, 3):
        settings = TrainingSettings(accumulate=parts, learning_rate=0.1, warmup_epochs=0)
        trained = Training(teacher(torch.float64), Batches(), settings)
        found.append([trained.train_step(batch(2, torch.float64)).item() for _ in range(3)])
    assert found[1] == pytest.approx(found[0], rel=1e-9)
    assert found[0][2] < found[0][0]
