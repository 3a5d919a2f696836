"""A teacher's task: what it remembers of earlier steps, and that a training that was stopped resumes to its bits."""

import copy

import pytest
import torch

from icckd.data import Augmentation, Batches
from icckd.errors import Interrupted, UserError
from icckd.methods import TrainingSet
from icckd.models import build_model
from icckd.reference import intra_class_contrastive
from icckd.settings import MemorySettings, TeacherLossSettings, TeacherSettings
from icckd.training import Checkpoint, TeacherTask, Training
from icckd.training.tasks.embeddings import LatestEmbeddings
from tests.training.test_loop import fit, without_time

CLASSES, IMAGES, BATCH = 3, 26, 8


def make(seed=0, epochs=2, margin=-1.0, weight=0.5, backend="auto", loss=None, **settings):
    """The training of a small teacher on random images; every sample is an anchor unless a margin is given.

    loss: Further settings of it.
    """
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    method = TeacherLossSettings(weight=weight, margin=margin, backend=backend, **(loss or {}))
    chosen = TeacherSettings(loss=method, epochs=epochs, batch_size=BATCH, learning_rate=0.02, **settings)
    known = TrainingSet(torch.zeros(IMAGES, dtype=torch.int64), (1, 8, 8))
    task = TeacherTask(build_model("convnet-small", 1, CLASSES, 8), chosen, IMAGES, known=known)
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


def images_asked(training):
    """How many images the network is asked about: filled with a number for each forward pass."""
    found = []
    training.task.model.register_forward_hook(lambda model, given, answer: found.append(len(given[0])))
    return found


def losses_by_hand(features, logits, positives, labels, known, margin, weight):
    """The teacher's loss, and the contrastive part of it; images that are not `known` are no anchors."""
    probabilities = logits.softmax(1)
    own = probabilities.gather(1, labels[:, None])[:, 0]
    gate = known & (own - probabilities.scatter(1, labels[:, None], -1).amax(1) > margin)
    contrast = intra_class_contrastive(features, positives, labels, gate=gate)
    return torch.nn.functional.cross_entropy(logits, labels) + weight * contrast, contrast


def test_strong_views_are_those_of_the_method_but_where_there_is_one_view(monkeypatch):
    assert make().task.strong_views == 0
    monkeypatch.setattr("icckd.methods.intra_class.IntraClass.strong_views", 1)
    tasks = {positive: make(positive=positive).task for positive in ("second-view", "previous-epoch")}
    assert {name: (task.views, task.strong_views) for name, task in tasks.items()} == {
        "second-view": (2, 1),
        "previous-epoch": (1, 0),
    }


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
    {"positive": "second-view-detached"},
    {"positive": "previous-epoch"},
    {"positive": "previous-epoch", "memory": MemorySettings(capacity=4, dtype="float8", average=0.9)},
    {"loss": {"space": "projection", "projection_dim": 8, "gate": "quantile", "target_ratio": 0.4}},
    {"loss": {"space": "soft-labels", "gate": "soft", "weight_warmup": 0.5, "weight_decline": 0.5, "neighbours": 2}},
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


@pytest.mark.parametrize("positive", ["second-view-detached", "previous-epoch"])
def test_gradients_of_a_positive_without_one_are_those_by_hand_in_float64(positive):
    training = make(positive=positive, margin=0.1, weight=0.7, backend="reference")
    task, random = training.task.double().train(), torch.Generator().manual_seed(5)
    task.epoch = 1
    batch = next(training.batches.epoch(1))
    batch = batch._replace(views=tuple(view.double() for view in batch.views))
    known = torch.ones(BATCH, dtype=torch.bool)
    by_hand = copy.deepcopy(task.model)
    if positive == "previous-epoch":
        known[:3] = False
        positives = torch.randn(BATCH, task.model.feature_dim, generator=random).double()
        task.latest.keep(batch.indices[3:], positives[3:], torch.tensor(True))
    else:
        positives = copy.deepcopy(by_hand)(batch.views[1])[0].detach()
    features, logits = by_hand(batch.views[0])
    expected, contrast = losses_by_hand(features, logits, positives, batch.labels, known, 0.1, 0.7)
    expected.backward()
    losses = task(batch)
    losses["loss"].backward()
    assert contrast > 0
    torch.testing.assert_close(losses["loss"], expected, rtol=1e-10, atol=1e-12)
    for actual, wanted in zip(task.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, wanted.grad, rtol=1e-8, atol=1e-12)


def test_a_detached_view_moves_no_statistics_and_leaves_gradients_in_bfloat16():
    training = make(positive="second-view-detached", memory=MemorySettings(capacity=4, average=0.9))
    task = training.task.train()
    batch = next(training.batches.epoch(0))
    before = copy.deepcopy(task.state_dict())
    detached = task.ask_without_gradient(batch)["second view"]
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert not detached.features.requires_grad
    alone = copy.deepcopy(task.model)
    torch.testing.assert_close(detached.features, copy.deepcopy(alone)(batch.views[1])[0])
    alone(batch.views[0])
    with torch.autocast("cpu", torch.bfloat16):
        losses = task(batch)
    losses["loss"].backward()
    assert all(parameter.grad.any() for parameter in task.model.parameters())
    for name, value in task.model.state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name], rtol=0.02, atol=0.01)


@pytest.mark.parametrize(
    ("positive", "asked"),
    [("second-view", [2 * BATCH]), ("second-view-detached", [BATCH, BATCH]), ("previous-epoch", [BATCH])],
)
def test_how_many_images_the_network_is_asked_about(positive, asked):
    training = make(positive=positive)
    found = images_asked(training)
    next(steps(training, 1))
    assert found == asked


def test_the_positives_of_the_previous_epoch_are_those_of_a_loop_by_hand():
    training = make(positive="previous-epoch", margin=-0.2, weight=0.5, seed=2)
    task, found, latest = training.task, [], {}
    ask, losses = task.ask, task.losses
    asked = []
    task.ask = lambda batch: asked.append(ask(batch)) or asked[-1]
    task.losses = lambda *given: found.append(losses(*given)) or found[-1]
    unseen, contrasts = 0, [0.0, 0.0]
    for batch in steps(training, 2):
        features, logits = (x.detach().double() for x in asked[-1][:2])
        indices = batch.indices.tolist()
        known = torch.tensor([i in latest and task.epoch > 0 for i in indices])
        unseen += task.epoch * (~known).sum()
        positives = torch.stack([latest.get(i, torch.zeros(features.shape[1])).double() for i in indices])
        expected, contrast = losses_by_hand(features, logits, positives, batch.labels, known, -0.2, 0.5)
        torch.testing.assert_close(found[-1]["loss"].double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[-1]["intra_class"].double(), contrast, rtol=1e-5, atol=1e-6)
        contrasts[task.epoch] += contrast.item()
        latest.update(zip(indices, features, strict=True))
    assert contrasts[0] == 0 < contrasts[1]
    assert unseen > 0  # The first epoch left out some that the second one has.


def test_the_latest_embeddings_are_of_steps_taken_and_finite(generator):
    latest = LatestEmbeddings(6, 3)
    rows = torch.randn(3, 3, generator=generator)
    latest.keep(torch.tensor([4, 0, 2]), rows, torch.tensor(True))
    latest.keep(torch.tensor([0, 1]), rows[:2], torch.tensor(False))
    latest.keep(torch.tensor([5, 2]), torch.full((2, 3), torch.inf), torch.tensor(True))
    newer = torch.randn(2, 3, generator=generator).bfloat16()
    latest.keep(torch.tensor([3, 0]), newer, torch.tensor(True))
    embeddings, known = latest.find(torch.arange(6))
    assert known.tolist() == [True, False, True, True, True, False]
    zero = torch.zeros(3)
    assert torch.equal(embeddings, torch.stack([newer[1].float(), zero, rows[2], newer[0].float(), rows[0], zero]))


def test_positives_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr("icckd.training.tasks.teacher.free_memory", lambda device: IMAGES * 32 * 4 - 1)
    with pytest.raises(UserError, match=rf"teacher.positive is previous-epoch, which takes .* of {IMAGES} images"):
        make(positive="previous-epoch")
    monkeypatch.setattr("icckd.training.tasks.teacher.free_memory", lambda device: IMAGES * 32 * 4)
    assert make(positive="previous-epoch").task.latest is not None


def test_without_the_loss_there_is_nothing_to_be_drawn_to():
    for positive in ("second-view-detached", "previous-epoch"):
        training = make(positive=positive, weight=0.0)
        found = images_asked(training)
        next(steps(training, 1))
        assert (training.task.views, found, training.task.latest) == (1, [BATCH], None)
