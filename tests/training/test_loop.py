"""The loop, on a small regression of its own: what it saves, skips and restores does not depend on images."""

import signal

import pytest
import torch
from torch import nn

from icckd.errors import Interrupted, TrainingDiverged, UserError
from icckd.settings import TrainingSettings
from icckd.training import Checkpoint, StopSignal, Task, Training
from icckd.training.loop import MAX_SKIPS_IN_A_ROW

STEPS = 7


class NumberedBatch:
    def __init__(self, epoch, step):
        generator = torch.Generator().manual_seed(1000 * epoch + step)
        self.inputs = torch.randn(8, 5, generator=generator)
        self.labels = torch.randint(3, (8,), generator=generator)
        self.number = epoch * STEPS + step


class NumberedBatches:
    def __len__(self):
        return STEPS

    def epoch(self, number, first_step=0):
        return (NumberedBatch(number, step) for step in range(first_step, STEPS))


class SmallTask(Task):
    """A network with normalisation statistics and dropout, whose loss is not finite on the batches in `broken`."""

    def __init__(self, broken=()):
        super().__init__()
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3))
        self.views = 1
        self.broken = set(broken)
        self.updates = 0

    def forward(self, batch):
        inputs = batch.inputs * (float("nan") if batch.number in self.broken else 1.0)
        loss = nn.functional.cross_entropy(self.model(inputs), batch.labels)
        return {"loss": loss, "twice": 2 * loss}

    def after_step(self, taken):
        self.updates += int(taken)


def training(epochs=3, broken=(), **settings):
    chosen = TrainingSettings(epochs=epochs, learning_rate=0.05, **settings)
    return Training(SmallTask(broken), NumberedBatches(), chosen)


def fit(trained, folder, stop_after=None, every=2):
    """Train; with `stop_after`, as if a signal came after that many steps."""
    stop = StopSignal()
    steps = 0

    def on_step(epoch, step, loss):
        nonlocal steps
        steps += 1
        if steps == stop_after:
            stop.received = signal.SIGTERM

    trained.fit(Checkpoint(folder), every, lambda: {"test_accuracy": 0.5}, on_step, lambda history: None, stop)
    return trained


def weights(trained):
    return torch.cat([value.double().flatten() for value in trained.task.model.state_dict().values()])


def without_time(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def test_training_lowers_the_loss_and_records_each_epoch(tmp_path):
    trained = fit(training(epochs=20), tmp_path)
    losses = [record["train_loss"] for record in trained.history]
    assert losses[-1] < losses[0]
    assert [record["epoch"] for record in trained.history] == list(range(1, 21))
    last = trained.history[-1]
    assert last["train_twice"] == pytest.approx(2 * last["train_loss"])
    assert last["step"] == 20 * STEPS
    assert last["test_accuracy"] == 0.5


@pytest.mark.parametrize("stop_after", [1, 6, 7, 8, 13, 20, 21])
def test_stopped_anywhere_and_resumed_ends_in_the_same_bits(tmp_path, stop_after):
    whole = fit(training(), tmp_path / "whole")
    with pytest.raises(Interrupted) as stopped:
        fit(training(), tmp_path / "parts", stop_after)
    assert stopped.value.signal_number == signal.SIGTERM
    resumed = training()
    torch.manual_seed(99)  # whatever ran before must not matter
    resumed.restore(Checkpoint(tmp_path / "parts").load())
    assert resumed.epoch * STEPS + resumed.step == stop_after
    fit(resumed, tmp_path / "parts")
    assert torch.equal(weights(resumed), weights(whole))
    assert without_time(resumed.history) == without_time(whole.history)


def test_a_finished_training_is_left_as_it_is(tmp_path):
    whole = fit(training(), tmp_path)
    again = training()
    again.restore(Checkpoint(tmp_path).load())
    before = weights(again)
    fit(again, tmp_path)
    assert torch.equal(weights(again), before)
    assert torch.equal(before, weights(whole))


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path):
    trained = training(epochs=1, broken=[2])
    seen = {}

    def on_step(epoch, step, loss):
        seen[step] = weights(trained)

    trained.fit(Checkpoint(tmp_path), 0, lambda: {}, on_step, lambda history: None, StopSignal())
    changed = (seen[3] != seen[2]).sum().item()
    assert changed == 1  # num_batches_tracked counts forward passes; weights and statistics stay
    assert trained.history[0]["skipped_steps"] == 1
    assert trained.task.updates == STEPS - 1
    assert torch.isfinite(weights(trained)).all()


def test_too_many_in_a_row_end_the_training_and_keep_the_last_good_checkpoint(tmp_path):
    broken = range(3, 3 + MAX_SKIPS_IN_A_ROW + 1)
    with pytest.raises(TrainingDiverged, match="epoch 2, step 2"):
        fit(training(broken=broken), tmp_path, every=1)
    state = Checkpoint(tmp_path).load()
    assert (state["epoch"], state["step"], state["steps"]["counts"][1]) == (0, 3, 0)


def test_as_many_as_allowed_do_not(tmp_path):
    broken = range(1, 1 + MAX_SKIPS_IN_A_ROW)
    trained = fit(training(broken=broken), tmp_path)
    assert trained.counts.skipped == MAX_SKIPS_IN_A_ROW


@pytest.mark.parametrize("count", [1, MAX_SKIPS_IN_A_ROW])
def test_steps_at_the_very_end_that_are_not_finite_are_divergence(tmp_path, count):
    last = 3 * STEPS
    with pytest.raises(TrainingDiverged, match=rf"steps at the very end .* not finite: {count}$"):
        fit(training(broken=range(last - count, last)), tmp_path, every=1)
    state = Checkpoint(tmp_path).load()
    assert (state["epoch"], state["step"], state["steps"]["counts"][1]) == (2, STEPS - count, 0)
    resumed = training(broken=range(last - count, last))
    resumed.restore(state)
    with pytest.raises(TrainingDiverged, match=f"not finite: {count}$"):
        fit(resumed, tmp_path)


def test_steps_at_the_end_of_an_earlier_epoch_may_come_right(tmp_path):
    trained = fit(training(broken=range(STEPS - 2, STEPS)), tmp_path)
    assert [record["skipped_steps"] for record in trained.history] == [2, 2, 2]


def test_an_epoch_of_skipped_steps_has_no_training_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(NumberedBatches, "__len__", lambda self: MAX_SKIPS_IN_A_ROW)
    monkeypatch.setattr("tests.training.test_loop.STEPS", MAX_SKIPS_IN_A_ROW)
    trained = fit(training(broken=range(MAX_SKIPS_IN_A_ROW, 2 * MAX_SKIPS_IN_A_ROW)), tmp_path)
    assert ["train_loss" in record for record in trained.history] == [True, False, True]


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_a_network_that_is_not_finite_is_divergence_and_never_saved(tmp_path, name, every):
    trained = training(epochs=2)

    def spoil(taken):  # After the update of the first epoch's last step: no loss of that epoch shows it.
        if trained.step == STEPS - 1:
            trained.task.model.state_dict()[name].fill_(float("inf"))

    trained.task.after_step = spoil
    with pytest.raises(TrainingDiverged, match=rf"after {STEPS} steps the network is not finite, in {name}$"):
        fit(trained, tmp_path, every=every)
    state = Checkpoint(tmp_path).load()
    assert all(tensor.isfinite().all() for tensor in state["task"].values())
    assert (state["epoch"], state["step"]) == (0, STEPS - 1 if every else 0)


def test_a_checkpoint_that_is_not_finite_cannot_be_continued(tmp_path):
    fit(training(), tmp_path)
    state = Checkpoint(tmp_path).load()
    state["task"]["model.0.bias"][1] = float("nan")
    resumed = training()
    resumed.restore(state)
    with pytest.raises(TrainingDiverged, match=rf"after {3 * STEPS} steps the network is not finite, in 0\.bias"):
        fit(resumed, tmp_path)


def test_a_signal_during_an_evaluation_is_obeyed(tmp_path):
    stop = StopSignal()

    def evaluate():
        stop.received = signal.SIGTERM
        return {}

    trained = training(epochs=1)
    with pytest.raises(Interrupted):
        trained.fit(Checkpoint(tmp_path), 0, evaluate, lambda *step: None, lambda history: None, stop)
    assert Checkpoint(tmp_path).load()["epoch"] == 1


@pytest.mark.parametrize("where", ["batches", "evaluation"])
def test_a_signal_that_ends_helping_processes_too_is_no_error(tmp_path, where):
    whole = fit(training(), tmp_path / "whole")
    trained, stop = training(), StopSignal()

    def ended(*arguments, **options):
        stop.received = signal.SIGTERM
        raise UserError("a process that decodes images has ended")

    if where == "batches":
        trained.batches.epoch = lambda number, first_step=0: batches_until(ended)
    evaluate = ended if where == "evaluation" else dict
    with pytest.raises(Interrupted):
        trained.fit(Checkpoint(tmp_path), 0, evaluate, lambda *step: None, lambda history: None, stop)
    resumed = training()
    resumed.restore(Checkpoint(tmp_path).load())
    assert resumed.step == (3 if where == "batches" else STEPS)
    assert torch.equal(weights(fit(resumed, tmp_path)), weights(whole))


def batches_until(ended):
    yield from (NumberedBatch(0, step) for step in range(3))
    ended()


def test_another_networks_checkpoint_is_refused(tmp_path):
    fit(training(epochs=1), tmp_path)
    other = training()
    other.task.model[0] = nn.Linear(5, 7)
    with pytest.raises(UserError, match="does not fit this training"):
        other.restore(Checkpoint(tmp_path).load())


def test_a_checkpoint_whose_records_are_none_is_refused(tmp_path):
    fit(training(epochs=1), tmp_path)
    with pytest.raises(UserError, match="does not fit this training"):
        training().restore(Checkpoint(tmp_path).load() | {"history": [3]})


@pytest.mark.parametrize("name", ["task", "optimizer", "rng", "epoch", "history", "format"])
def test_a_checkpoint_that_lacks_something_is_refused(tmp_path, name):
    fit(training(epochs=1), tmp_path)
    state = Checkpoint(tmp_path).load()
    del state[name]
    with pytest.raises(UserError, match="does not fit this training"):
        training().restore(state)
