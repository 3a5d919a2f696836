"""The training loop: one for teacher and student, resumable at any step to the same bits."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from icckd.data import Batch, Epochs
from icckd.distributed import ALONE, World
from icckd.distributed.parts import own_gradient, own_part
from icckd.errors import Interrupted, TrainingDiverged, UserError, reason
from icckd.models import not_finite
from icckd.settings import TrainingSettings
from icckd.training.accumulation import accumulate
from icckd.training.capture import CapturedSteps
from icckd.training.checkpoint import Checkpoint
from icckd.training.heap import trim_heap
from icckd.training.optimizers import make_optimizer
from icckd.training.randomness import random_state, set_random_state
from icckd.training.schedule import learning_rate
from icckd.training.signals import StopSignal
from icckd.training.statistics import RunningStatistics
from icckd.training.steps import StepCounts
from icckd.training.tasks import Task

MAX_SKIPS_IN_A_ROW = 5
# Every how many steps their losses are read; a GPU is waited for then, and not else.
LOOK_EVERY = {"cpu": 1, "cuda": 50}
_STATE_FORMAT = 2

Record = dict[str, Any]


class Training:
    """A task, its optimiser, and how far it has come.

    `batches` are a pure function of (epoch, step): with the state below, that is all that resuming takes. `history`
    holds one record per finished epoch.

    A step whose loss or gradient is not finite is skipped by the device, and counted there. The host looks at losses
    and counts every so many steps, at checkpoints and at the end of an epoch: between these it never waits.

    The processes of `world` train together, each with its part of every batch. What is skipped, reported or saved, and
    when they stop, is the same on all.
    """

    def __init__(self, task: Task, batches: Epochs, settings: TrainingSettings, world: World = ALONE):
        self.task = task
        self.world = world
        self.batches = batches
        self.settings = settings
        self.device = next(task.model.parameters()).device
        self.optimizer = make_optimizer(task, settings)
        self.counts = StepCounts(self.device)
        self.epoch = 0
        self.step = 0
        self.seconds = 0.0
        self.history: list[Record] = []
        self._statistics = RunningStatistics(task)
        self._captured = CapturedSteps(self._make_step) if settings.cuda_graph else None
        self._look_every = LOOK_EVERY[self.device.type]
        self._clock = time.monotonic()

    @property
    def model(self) -> nn.Module:
        """The network in training."""
        return self.task.model

    def fit(
        self,
        checkpoint: Checkpoint,
        checkpoint_every: int,
        evaluate: Callable[[], Record],
        on_step: Callable[[int, int, float | None], None],
        on_epoch: Callable[[list[Record]], None],
        stop: StopSignal,
    ) -> None:
        """Train to the last epoch; `evaluate()` adds its numbers to each epoch's record.

        `on_step(epoch, step, loss)` and `on_epoch(history)` tell how far it is (epoch 0-based, step 1-based within it;
        the loss is None where it was not read).
        Saves to `checkpoint` at the start, every `checkpoint_every` steps (0: never) and after each epoch. Raises
        Interrupted, having saved, once `stop` has received a signal; TrainingDiverged, keeping the last good
        checkpoint, after more than MAX_SKIPS_IN_A_ROW steps in a row whose loss or gradient was not finite, after any
        such step at the very end, and at the end of an epoch whose network is not finite: no later step mends that.
        """
        self._clock = time.monotonic()
        self._check_network()
        if not checkpoint.exists():
            checkpoint.save(self.state())
        try:
            while self.epoch < self.settings.epochs:
                self._begin_epoch()
                for batch in self.batches.epoch(self.epoch, first_step=self.step):
                    vote = self.world.vote(stop.received or 0)
                    loss = self.train_step(batch)
                    on_step(self.epoch, self.step, self._look(loss))
                    due = checkpoint_every and self.step % checkpoint_every == 0 and self.step < len(self.batches)
                    # The vote is of signals before the step, so that nobody waits for it; one process need not ask.
                    stopped_by = vote() if self.world.size > 1 else stop.received
                    if stopped_by or due:
                        self._save(checkpoint)
                    if stopped_by:
                        raise Interrupted(stopped_by)
                self._check_skips()
                self._check_network()
                if self.counts.in_a_row and self.epoch + 1 == self.settings.epochs:
                    raise TrainingDiverged(
                        f"steps at the very end whose loss or gradient was not finite: {self.counts.in_a_row}"
                    )
                self._finish_epoch(evaluate())
                self._save(checkpoint)
                on_epoch(self.history)
                trim_heap()
                stopped_by = self.world.most(stop.received or 0)
                if stopped_by:  # During the evaluation.
                    raise Interrupted(stopped_by)
        except UserError:
            if not stop.received or self.world.size > 1:
                raise
            # A signal to all processes of a group ends those that decode images, too: that is no error.
            self._save(checkpoint)
            raise Interrupted(stop.received) from None

    def _begin_epoch(self) -> None:
        self.task.epoch = self.epoch
        if self._captured is not None:
            self._captured.renew()  # The epoch is in the losses.

    def _save(self, checkpoint: Checkpoint) -> None:
        # What made the last step not finite may be the weights themselves: the last good state stays.
        if not self.counts.in_a_row and not self._not_finite(self.task.state_dict()):
            checkpoint.save(self.state())

    def train_step(self, batch: Batch) -> Tensor:
        """One step's forward, backward and update; the loss, 0-dim. Does not wait for a GPU.

        Where the loss or its gradient is not finite there is no update.
        """
        self.task.train()
        self.optimizer.set_rate(self.learning_rate)
        loss = self._make_step(batch) if self._captured is None else self._captured(batch)
        self.step += 1
        return loss

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return learning_rate(self.settings, self.epoch * len(self.batches) + self.step, len(self.batches))

    def _make_step(self, batch: Batch) -> Tensor:
        self._statistics.keep()
        self.optimizer.zero_grad()
        losses = self._losses_and_gradients(batch)
        finite = losses["loss"].isfinite() & self._gradient_norm().isfinite()
        losses, statistics, taken = self._of_all_ranks(losses, finite, batch)
        self.optimizer.step(taken)
        self._statistics.become(statistics, taken)
        self.task.after_step(taken)
        self.counts.add(losses, taken)
        return losses["loss"]

    def _of_all_ranks(
        self, losses: dict[str, Tensor], finite: Tensor, batch: Batch
    ) -> tuple[dict[str, Tensor], list[Tensor], Tensor]:
        """The losses and running statistics, and whether all is finite: of several processes, on which all agree.

        Statistics that each has of its own rows alone become their mean, weighted by the number of rows.
        """
        statistics = self._statistics.now()
        if self.task.replicas is None or batch.whole is None:
            return losses, statistics, finite
        counts = batch.whole.counts
        share = len(batch.labels) * len(counts) / sum(counts)
        weighted = [x * share for x in statistics]
        together = [finite.to(losses["loss"].dtype), *losses.values(), *weighted]
        agreed, *means = self.task.replicas.means(together)
        return dict(zip(losses, means, strict=False)), means[len(losses) :], agreed == 1

    def _losses_and_gradients(self, batch: Batch) -> dict[str, Tensor]:
        losses = accumulate(self.task, batch, self.settings.accumulate, self._precision)
        if self.task.replicas is not None:
            self.task.replicas.average_others()
        return losses

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.autocast)

    def _gradient_norm(self) -> Tensor:
        gradients = [own_gradient(p) for p in self.task.parameters()]
        return nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])

    def _look(self, loss: Tensor) -> float | None:
        """The loss of the last step, where it is time to read it; and whether too many were skipped."""
        if self.step % self._look_every:
            return None
        self._check_skips()
        return loss.item()

    def _check_skips(self) -> None:
        if self.counts.longest > MAX_SKIPS_IN_A_ROW:
            raise TrainingDiverged(
                f"the loss or its gradient was not finite in {self.counts.longest} steps in a row "
                f"(epoch {self.epoch + 1}, step {self.step})"
            )

    def _check_network(self) -> None:
        spoilt = self._not_finite({name.removeprefix("model."): x for name, x in self.task.state_dict().items()})
        if spoilt:
            raise TrainingDiverged(
                f"after {self.epoch * len(self.batches) + self.step} steps the network is not finite, in {spoilt}"
            )

    def _not_finite(self, tensors: dict[str, Tensor]) -> str:
        """What of `tensors`, of which each rank has its own or a part, is not finite; "" where all is, on all ranks."""
        own = not_finite({name: own_part(x) for name, x in tensors.items()})
        anywhere = self.world.most(bool(own))
        return own or ("what another process has of it" if anywhere else "")

    def _finish_epoch(self, evaluation: Record) -> None:
        self.epoch += 1
        self._tick()
        steps = self.epoch * len(self.batches)
        self.history.append(
            {
                "epoch": self.epoch,
                "step": steps,
                "learning_rate": learning_rate(self.settings, steps - 1, len(self.batches)),
                **{f"train_{name}": value for name, value in self.counts.means().items()},
                "skipped_steps": self.counts.skipped,
                **evaluation,
                "seconds": self.seconds,
            }
        )
        self.step = 0
        self.counts.forget()

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now

    def state(self) -> Record:
        """Everything that `restore` needs, as dicts, lists, numbers and tensors: that of one process.

        Of several, the first has all of it; all call this together.
        """
        self._tick()
        return {
            "format": _STATE_FORMAT,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "steps": self.counts.state(),
            "task": self.task.whole_state(),
            "optimizer": self.optimizer.state_dict(),
            "rng": random_state(),
        }

    def restore(self, state: Record) -> None:
        """Go back to a state that `state()` returned. Raises UserError where it is of another kind of training."""
        try:
            if state["format"] != _STATE_FORMAT:
                raise ValueError(f"format {state['format']}, this version reads {_STATE_FORMAT}")
            self.task.load_whole_state(state["task"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step = int(state["epoch"]), int(state["step"])
            self.seconds = float(state["seconds"])
            self.history = [dict(record) for record in state["history"]]
            self.counts.restore(state["steps"])
            set_random_state(state["rng"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"the checkpoint does not fit this training: {reason(error)}") from error
