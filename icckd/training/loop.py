"""The training loop: one for teacher and student, resumable at any step to the same bits."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from icckd.data import Batch, Batches
from icckd.errors import Interrupted, TrainingDiverged, UserError
from icckd.models import not_finite
from icckd.settings import TrainingSettings
from icckd.training.checkpoint import Checkpoint
from icckd.training.schedule import learning_rate
from icckd.training.signals import StopSignal
from icckd.training.tasks import Task

MAX_SKIPS_IN_A_ROW = 5
_STATE_FORMAT = 1

Record = dict[str, Any]


class Training:
    """A task, its optimiser, and how far it has come.

    `batches` must be a pure function of (epoch, step), as `icckd.data.Batches` is: with the state below, that is all
    that resuming takes. `history` holds one record per finished epoch.
    """

    def __init__(self, task: Task, batches: Batches, settings: TrainingSettings):
        self.task = task
        self.batches = batches
        self.settings = settings
        self.optimizer = torch.optim.SGD(
            parameter_groups(task, settings.weight_decay, settings.decay_all),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
        )
        self.epoch = 0
        self.step = 0
        self.seconds = 0.0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.history: list[Record] = []
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._clock = time.monotonic()

    def fit(
        self,
        checkpoint: Checkpoint,
        checkpoint_every: int,
        evaluate: Callable[[], Record],
        on_step: Callable[[int, int, float], None],
        on_epoch: Callable[[list[Record]], None],
        stop: StopSignal,
    ) -> None:
        """Train to the last epoch; `evaluate()` adds its numbers to each epoch's record.

        `on_step(epoch, step, loss)` and `on_epoch(history)` tell how far it is (epoch 0-based, step 1-based within it).
        Saves to `checkpoint` at the start, every `checkpoint_every` steps (0: never) and after each epoch. Raises
        Interrupted, having saved, once `stop` has received a signal; TrainingDiverged, keeping the last good
        checkpoint, after more than MAX_SKIPS_IN_A_ROW steps in a row whose loss or gradient was not finite, after any
        such step at the very end, and at the end of an epoch whose network is not finite: no later step mends that.
        """
        self._clock = time.monotonic()
        self._check_network()
        if not checkpoint.exists():
            checkpoint.save(self.state())
        while self.epoch < self.settings.epochs:
            self.task.epoch = self.epoch
            for batch in self.batches.epoch(self.epoch, first_step=self.step):
                loss = self.train_step(batch)
                on_step(self.epoch, self.step, loss)
                due = checkpoint_every and self.step % checkpoint_every == 0 and self.step < len(self.batches)
                if stop.received or due:
                    self._save(checkpoint)
                if stop.received:
                    raise Interrupted(stop.received)
            self._check_network()
            if self.skipped_in_a_row and self.epoch + 1 == self.settings.epochs:
                raise TrainingDiverged(
                    f"steps at the very end whose loss or gradient was not finite: {self.skipped_in_a_row}"
                )
            self._finish_epoch(evaluate())
            self._save(checkpoint)
            on_epoch(self.history)
            if stop.received:  # During the evaluation.
                raise Interrupted(stop.received)

    def _save(self, checkpoint: Checkpoint) -> None:
        # What made the last step not finite may be the weights themselves: the last good state stays.
        if not self.skipped_in_a_row and not not_finite(self.task.state_dict()):
            checkpoint.save(self.state())

    def train_step(self, batch: Batch) -> float:
        """One step's forward, backward and update; the loss. Where that or its gradient is not finite, no update."""
        self.task.train()
        rate = learning_rate(self.settings, self.epoch * len(self.batches) + self.step, len(self.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # A forward pass that overflowed has spoilt the running statistics too: keep what they were.
        statistics = running_statistics(self.task)
        before = [b.clone() for b in statistics]
        with torch.autocast(batch.labels.device.type, dtype=torch.bfloat16, enabled=self.settings.autocast):
            losses = self.task(batch)
        self.optimizer.zero_grad()
        losses["loss"].backward()
        loss, norm = self._loss_and_gradient_norm(losses["loss"])
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step()
            self.task.after_step()
            self._add(losses)
            self.skipped_in_a_row = 0
        else:
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(value)
            self._skip()
        self.step += 1
        return loss

    def _loss_and_gradient_norm(self, loss: Tensor) -> tuple[float, float]:
        gradients = [p.grad for p in self.task.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        # One transfer for both: the only time a step waits for the device.
        loss_value, norm_value = torch.stack([loss.detach().float(), norm.float()]).tolist()
        return loss_value, norm_value

    def _add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._summed += 1

    def _skip(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > MAX_SKIPS_IN_A_ROW:
            raise TrainingDiverged(
                f"the loss or its gradient was not finite in {self.skipped_in_a_row} steps in a row "
                f"(epoch {self.epoch + 1}, step {self.step + 1})"
            )

    def _check_network(self) -> None:
        spoilt = not_finite({name.removeprefix("model."): x for name, x in self.task.state_dict().items()})
        if spoilt:
            raise TrainingDiverged(
                f"after {self.epoch * len(self.batches) + self.step} steps the network is not finite, in {spoilt}"
            )

    def _finish_epoch(self, evaluation: Record) -> None:
        self.epoch += 1
        self._tick()
        means = {f"train_{name}": value.item() / self._summed for name, value in self._sums.items()}
        self.history.append(
            {
                "epoch": self.epoch,
                "step": self.epoch * len(self.batches),
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                **means,
                "skipped_steps": self.skipped,
                **evaluation,
                "seconds": self.seconds,
            }
        )
        self.step = 0
        self._sums = {}
        self._summed = 0

    def _tick(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._clock
        self._clock = now

    def state(self) -> Record:
        """Everything that `restore` needs, as dicts, lists, numbers and tensors."""
        self._tick()
        return {
            "format": _STATE_FORMAT,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "history": self.history,
            "sums": self._sums,
            "summed": self._summed,
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": _rng_state(),
        }

    def restore(self, state: Record) -> None:
        """Go back to a state that `state()` returned. Raises UserError where it is of another kind of training."""
        try:
            if state["format"] != _STATE_FORMAT:
                raise ValueError(f"format {state['format']}, this version reads {_STATE_FORMAT}")
            self.task.load_state_dict(state["task"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.epoch, self.step = int(state["epoch"]), int(state["step"])
            self.seconds = float(state["seconds"])
            self.skipped, self.skipped_in_a_row = int(state["skipped"]), int(state["skipped_in_a_row"])
            self.history = list(state["history"])
            device = next(self.task.model.parameters()).device
            self._sums = {name: value.to(device) for name, value in state["sums"].items()}
            self._summed = int(state["summed"])
            _set_rng_state(state["rng"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the checkpoint does not fit this training: {reason}") from error


def running_statistics(task: nn.Module) -> list[Tensor]:
    """What a forward pass changes: the running statistics of normalisations."""
    names = ("running_mean", "running_var")
    return [buffer for name, buffer in task.named_buffers() if name.rpartition(".")[2] in names]


def parameter_groups(model: nn.Module, weight_decay: float, decay_all: bool) -> list[dict[str, Any]]:
    """Parameters for an optimiser: weights decay; biases and normalisation parameters, of one axis or none, may too."""
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": weight_decay if decay_all else 0.0},
    ]


def _rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
