"""Staged distillation as one training: what its parts change, how they are counted, stopped and resumed."""

import math
import signal
from itertools import pairwise

import pytest
import torch

from icckd.data import Batches, ImageData
from icckd.distributed import ALONE
from icckd.errors import Interrupted, TrainingDiverged, UserError
from icckd.methods import EvaluationSet
from icckd.models import build_model
from icckd.procedures import Lesson, procedure_of
from icckd.settings import Settings, StudentLossSettings, StudentSettings
from icckd.training import Checkpoint, FrozenTeacher, StopSignal
from tests.procedures.trainings import without_time

IMAGES, BATCH, CLASSES = 12, 6, 3
STEPS = IMAGES // BATCH
FLAT = ((0.5,), (0.25,))
CPU = torch.device("cpu")
GIVEN = {"epochs": 7, "batch_size": BATCH, "warmup_epochs": 0.5, "learning_rate": 0.05, "weight_decay": 0.1}


def lesson(student="convnet-small", teacher="convnet-small", size=8, stages=None, **given):
    loss = StudentLossSettings(method="staged")
    loss.staged.student_stages = stages
    settings = Settings(student=StudentSettings(loss=loss, **{**GIVEN, **given}))
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 1, size, size), generator=random, dtype=torch.uint8)
    labels = torch.arange(IMAGES) % CLASSES
    data = ImageData("random", images, labels, images, labels, ("a", "b", "c"), *FLAT, None, None)
    torch.manual_seed(1)
    networks = [build_model(arch, 1, CLASSES, size) for arch in (student, teacher)]

    def batches(views=1, *, part=None, batch_size=None):
        how = {"mean": FLAT[0], "std": FLAT[1], "augmentation": None, "device": CPU, "drop_last": False}
        return Batches(images, labels, batch_size=BATCH, views=views, shuffle=True, seed=3, **how)

    return Lesson(networks[0], FrozenTeacher(networks[1], FLAT, FLAT), data, settings, CPU, batches, lambda x: x, ALONE)


class Watched:
    """A training and all that is told of it; with `stop_after`, as if a signal came after that many steps."""

    def __init__(self, folder, stop_after=None, stop_in_epoch=None, **given):
        self.lesson = lesson(**given)
        self.procedure = procedure_of(self.lesson)
        self.training = self.procedure.training()
        self.checkpoint = Checkpoint(folder)
        self.steps, self.epochs, self.states = [], [], []
        self.stop_after, self.stop_in_epoch = stop_after, stop_in_epoch
        self.signals = StopSignal()

    def fit(self, evaluate=lambda: {"test_accuracy": 0.5}):
        def on_step(epoch, step, loss):
            self.steps.append((epoch, step))
            self.states.append(self.student())
            if len(self.steps) == self.stop_after:
                self.signals.received = signal.SIGTERM

        def on_epoch(history):
            self.epochs.append(len(history))
            if len(history) == self.stop_in_epoch:
                self.signals.received = signal.SIGTERM

        self.training.fit(self.checkpoint, 1, evaluate, on_step, on_epoch, self.signals)
        return self

    def student(self):
        return {name: x.clone() for name, x in self.lesson.student.state_dict().items()}

    def resumed(self):
        torch.manual_seed(99)  # Whatever ran before must not matter.
        self.training.restore(self.checkpoint.load())
        return self

    def bits(self):
        state = {**self.lesson.student.state_dict(), **self.procedure.method.state_dict()}
        return torch.cat([value.double().flatten() for value in state.values()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Watched(tmp_path_factory.mktemp("whole")).fit()


def test_epochs_are_divided_and_counted_through(whole):
    history = whole.training.history
    assert [record["epoch"] for record in history] == list(range(1, 8))
    assert [record["trained_stages"] for record in history] == [1, 1, 2, 2, 3, 3, 3]
    assert [record["step"] for record in history] == [STEPS * n for n in range(1, 8)]
    assert whole.steps == [(epoch, step) for epoch in range(7) for step in range(1, STEPS + 1)]
    assert whole.epochs == list(range(1, 8))
    assert (whole.training.epoch, whole.training.settings.epochs, len(whole.training.batches)) == (7, 7, STEPS)
    seconds = [record["seconds"] for record in history]
    assert seconds == sorted(seconds)
    assert whole.training.seconds >= seconds[-1]


def test_every_training_has_a_schedule_of_its_own(whole):
    """Of two or three epochs, in each a warm-up of half an epoch and a cosine to 0."""
    for record, done, of in zip(whole.training.history, (1, 2, 1, 2, 1, 2, 3), (2, 2, 2, 2, 3, 3, 3), strict=True):
        warmup = 0.5 * STEPS
        progress = (done * STEPS - 1 - warmup) / (of * STEPS - warmup)
        assert record["learning_rate"] == pytest.approx(0.025 * (1 + math.cos(math.pi * progress)))


def changed(before, after):
    """Which layers of convnet-small, the classifier being the fourth, are not as they were."""
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {3 if name.startswith("classifier") else int(name.split(".")[1]) for name in names}


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "lamb"])
def test_blocks_beyond_the_stage_stay_as_they_were(optimizer, tmp_path):
    """Their running statistics too, and though weights decay."""
    if optimizer != "sgd":
        pytest.importorskip("pytorch_optimizer")
    watched = Watched(tmp_path, optimizer=optimizer, epochs=3)
    states = [watched.student(), *watched.fit().states[STEPS - 1 :: STEPS]]
    found = [changed(*pair) for pair in pairwise(states)]
    assert found == [{0}, {0, 1}, {0, 1, 2, 3}]


def test_what_is_measured_is_what_has_been_trained(tmp_path):
    watched = Watched(tmp_path, epochs=3)
    images, heads, answers = torch.randn(2, 1, 8, 8), watched.procedure.method.heads, []

    def evaluate():
        answers.append((watched.training.model.eval()(images), watched.training.epoch))
        student = watched.lesson.student.eval()
        maps = student(images, stages=student.stage_names)[2]
        if len(answers) < 3:
            features = maps[f"stage{len(answers)}"].mean((2, 3))
            expected = features, heads[len(answers) - 1](features)
        else:
            expected = student(images)
        torch.testing.assert_close(answers[-1][0], expected)
        return {}

    watched.fit(evaluate)
    assert [epoch for _, epoch in answers] == [0, 1, 2]
    assert watched.training.model is watched.lesson.student


def test_no_training_sees_the_batches_of_the_one_before(tmp_path):
    watched = Watched(tmp_path, epochs=3)
    seen, method = [], watched.procedure.method
    forward = method.forward

    def noting(number, student, teacher, samples):
        seen.append(samples.indices.tolist())
        return forward(number, student, teacher, samples)

    method.forward = noting
    watched.fit()
    expected = [batch.indices.tolist() for epoch in range(3) for batch in watched.lesson.batches().epoch(epoch)]
    assert seen == expected


# In the first training, at its last step, at the second's first, at the last training's last.
@pytest.mark.parametrize("stop_after", [1, 4, 5, 14])
def test_stopped_anywhere_and_resumed_ends_in_the_same_bits(whole, tmp_path, stop_after):
    with pytest.raises(Interrupted):
        Watched(tmp_path, stop_after).fit()
    resumed = Watched(tmp_path).resumed()
    done = len(resumed.training.history)
    assert resumed.training.epoch == done == max(0, -(-stop_after // STEPS) - 1)
    resumed.fit()
    assert resumed.steps == whole.steps[stop_after:]
    assert torch.equal(resumed.bits(), whole.bits())
    assert without_time(resumed.training.history) == without_time(whole.training.history)


@pytest.mark.parametrize("epoch", [2, 4])
def test_stopped_exactly_between_two_trainings_and_resumed(whole, tmp_path, epoch):
    with pytest.raises(Interrupted):
        Watched(tmp_path, stop_in_epoch=epoch).fit()
    resumed = Watched(tmp_path).resumed()
    assert resumed.training.epoch == epoch
    assert len(resumed.fit().steps) == (7 - epoch) * STEPS
    assert torch.equal(resumed.bits(), whole.bits())
    assert without_time(resumed.training.history) == without_time(whole.training.history)


def test_killed_between_two_trainings_and_resumed_ends_in_the_same_bits(whole, tmp_path, monkeypatch):
    """A kill leaves the file that was written last: that of a training's end tells nothing of the next."""
    saved, save = [], Checkpoint.save
    monkeypatch.setattr(
        Checkpoint, "save", lambda self, state: (save(self, state), saved.append(self.path.read_bytes()))
    )
    Watched(tmp_path / "watched").fit()
    assert len(saved) == 1 + 2 * 7
    monkeypatch.undo()
    for number in (4, 5):  # The last of the first training, the first of the second.
        resumed = Watched(tmp_path / str(number))
        resumed.checkpoint.path.parent.mkdir(parents=True)
        resumed.checkpoint.path.write_bytes(saved[number])
        assert torch.equal(resumed.resumed().fit().bits(), whole.bits())


@pytest.mark.parametrize("name", ["number", "earlier", "task", "optimizer"])
def test_a_checkpoint_that_lacks_something_is_refused(whole, tmp_path, name):
    state = whole.checkpoint.load()
    del state[name]
    with pytest.raises(UserError, match=r"^the checkpoint does not fit this training: "):
        Watched(tmp_path).training.restore(state)
    with pytest.raises(UserError, match=r"^the checkpoint does not fit this training: "):
        Watched(tmp_path).training.restore({**whole.checkpoint.load(), "earlier": "no records"})
    with pytest.raises(UserError, match=r"^the checkpoint does not fit this training: it is of training 4 of 3$"):
        Watched(tmp_path).training.restore({**whole.checkpoint.load(), "number": 4})


def test_what_it_leaves_tells_of_every_stage(whole):
    history = whole.training.history
    nothing = EvaluationSet([], torch.tensor([]), whole.lesson.student)
    found = whole.procedure.findings(nothing).numbers["stages"]
    assert list(found) == ["stage1", "stage2", "stage3"]
    assert [of["epochs"] for of in found.values()] == [2, 2, 3]
    assert found["stage1"] == {"epochs": 2, "test_accuracy": 0.5, "weights": {"stage1": 1.0}}
    weights = found["stage3"]["weights"]
    assert weights == {name: history[-1][f"train_weight_{name}"] for name in found}
    assert sum(weights.values()) == pytest.approx(1)


def test_a_training_that_diverges_is_named(tmp_path):
    watched = Watched(tmp_path)
    bias = watched.lesson.student.trunk.layers()[1].convolution[1].bias

    def spoil(history):
        if len(history) == 2:
            bias.data.fill_(float("nan"))

    with pytest.raises(TrainingDiverged, match=r"^in the training of stage 2 after 0 steps the network is not finite"):
        watched.training.fit(watched.checkpoint, 0, dict, lambda *step: None, spoil, StopSignal())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epochs": 2}, r"student\.epochs is 2; it should be 3 or more: .* trains stage1, stage2, stage3 one"),
        ({"warmup_epochs": 2.5}, r"student\.warmup_epochs is 2\.5; it should be 2 or less: .* 2, 2, 3 epochs"),
        ({"stages": ["stage7"]}, r"student\.loss\.staged\.student_stages names 'stage7'; "),
    ],
)
def test_what_cannot_be_trained_is_refused_before(given, words):
    with pytest.raises(UserError, match=rf"^{words}"):
        procedure_of(lesson(**given))


def test_as_many_epochs_as_stages_and_a_warmup_as_long_as_one_will_do():
    assert procedure_of(lesson(epochs=3, warmup_epochs=1)).epochs == [1, 1, 1]


@pytest.mark.parametrize(
    "arch", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2_half", "shufflenetv1", "shufflenetv2", "resnet18"]
)
def test_every_kind_of_network_is_trained_up_to_every_stage(arch):
    given = lesson(student=arch, teacher="convnet-small", size=16)
    (batch, *_) = given.batches()
    tasks = procedure_of(given).tasks()
    assert len(tasks) == 3
    for number, task in enumerate(tasks, start=1):
        given.student.zero_grad()
        task(batch)["loss"].backward()
        learnt = {name for name, x in given.student.named_parameters() if x.grad is not None}
        assert learnt
        assert (len(learnt) == len(list(given.student.parameters()))) == (number == 3)
