"""A teacher's task: what it remembers of earlier steps, and that a training that was stopped resumes to its bits."""

import copy

import pytest
import torch

from icckd.data import Augmentation, Batches
from icckd.errors import Interrupted
from icckd.models import build_model
from icckd.settings import MemorySettings, TeacherLossSettings, TeacherSettings
from icckd.training import Checkpoint, TeacherTask, Training
from tests.training.test_loop import fit, without_time

CLASSES, IMAGES, BATCH = 3, 26, 8


def make(seed=0, epochs=2, margin=-1.0, weight=0.5, **settings):
    """The training of a small teacher on random images; every sample is an anchor."""
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    loss = TeacherLossSettings(weight=weight, margin=margin)
    chosen = TeacherSettings(loss=loss, epochs=epochs, batch_size=BATCH, learning_rate=0.02, **settings)
    task = TeacherTask(build_model("convnet-small", 1, CLASSES, 8), chosen)
    batches = Batches(
        torch.randint(256, (IMAGES, 1, 8, 8), dtype=torch.uint8, generator=random),
        torch.randint(CLASSES, (IMAGES,), generator=random),
        batch_size=BATCH,
        mean=[0.5],
        std=[0.25],
        augmentation=Augmentation(1, True, 0.0, None),
        views=task.views,
        shuffle=True,
        seed=seed,
        device="cpu",
        drop_last=True,
    )
    return Training(task, batches, chosen)


def steps(training, epochs):
    """Each batch, after the step on it."""
    for epoch in range(epochs):
        training.epoch = training.task.epoch = epoch
        for batch in training.batches.epoch(epoch):
            training.train_step(batch)
            yield batch


def seen(task):
    """What the network says in training: filled with the features of each batch's first views."""
    found, ask = [], task.ask

    def listen(batch):
        outputs = ask(batch)
        found.append(outputs.features[: len(batch.labels)].detach().clone())
        return outputs

    task.ask = listen
    return found


def remembered(memory):
    """By class, the set of its embeddings."""
    rows, labels = memory.tensors()
    return [sorted(rows[labels == label].tolist()) for label in range(CLASSES)]


def most_recent(features, labels, capacity):
    """The same of a list of batches."""
    rows, classes = torch.cat(features), torch.cat(labels)
    return [sorted(rows[classes == label][-capacity:].tolist()) for label in range(CLASSES)]


RESUMED = [
    {"memory": MemorySettings(capacity=4)},
    {"memory": MemorySettings(capacity=4, dtype="bfloat16", warmup_epochs=1)},
    {"memory": MemorySettings(capacity=4, dtype="float16", average=0.9)},
    {"memory": MemorySettings(capacity=4, dtype="float8", average=0.9)},
]


@pytest.mark.parametrize("settings", RESUMED, ids=str)
def test_stopped_and_resumed_ends_in_the_same_bits(tmp_path, settings):
    whole = fit(make(**settings), tmp_path / "whole", every=0)
    for steps_further in (4, 1):  # In the middle of the second epoch, and again.
        resumed = make(**settings)
        if (tmp_path / "parts").exists():
            resumed.restore(Checkpoint(tmp_path / "parts").load())
        with pytest.raises(Interrupted):
            fit(resumed, tmp_path / "parts", steps_further, every=0)
    resumed = make(**settings)
    resumed.restore(Checkpoint(tmp_path / "parts").load())
    fit(resumed, tmp_path / "parts", every=0)
    first, second = whole.task.state_dict(), resumed.task.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert without_time(resumed.history) == without_time(whole.history)


def test_the_memory_holds_the_embeddings_of_the_steps_taken():
    training = make(memory=MemorySettings(capacity=4))
    features, labels = seen(training.task), []
    for batch in steps(training, 2):
        labels.append(batch.labels)
        assert remembered(training.task.memory) == most_recent(features, labels, 4)
    before = remembered(training.task.memory)
    training.task.losses(training.task.ask(batch), {}, batch)
    training.task.after_step(torch.tensor(False))
    assert remembered(training.task.memory) == before


def test_during_the_warm_up_the_memory_is_filled_and_not_used():
    losses = {}
    for name, memory in {"none": {}, "from the second epoch": {"capacity": 6, "warmup_epochs": 1}}.items():
        training = make(memory=MemorySettings(**memory))
        losses[name] = []
        for _ in steps(training, 2):
            losses[name].append(training.counts.means()["intra_class"])
    count = len(training.batches)
    first, second = losses.values()
    assert first[:count] == second[:count]
    assert first[count] != second[count]
    assert len(training.task.memory) > 0


def test_an_average_of_the_teacher_fills_the_memory():
    training = make(memory=MemorySettings(capacity=4, average=0.7))
    task = training.task
    average, features, labels = copy.deepcopy(task.model).eval(), [], []
    for batch in steps(training, 2):
        with torch.no_grad():
            features.append(average(batch.views[0])[0])
            for name, value in average.state_dict().items():
                if value.is_floating_point():
                    value.copy_(0.7 * value.double() + 0.3 * task.model.state_dict()[name].double())
        labels.append(batch.labels)
        for actual, expected in zip(remembered(task.memory), most_recent(features, labels, 4), strict=True):
            torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    trained = {p for group in training.optimizer.state_dict()["param_groups"] for p in group["params"]}
    assert len(trained) == len(list(task.model.parameters()))
    before = copy.deepcopy(task.average.state_dict())
    task.losses(task.ask(batch), task.ask_without_gradient(batch), batch)
    task.after_step(torch.tensor(False))
    assert all(torch.equal(value, before[name]) for name, value in task.average.state_dict().items())


def test_a_memory_that_no_loss_uses_is_not_made():
    for settings in ({"weight": 0.0}, {"memory": MemorySettings()}):
        task = make(**{"memory": MemorySettings(capacity=10**12, average=0.9), **settings}).task
        assert task.memory is None
        assert task.average is None
