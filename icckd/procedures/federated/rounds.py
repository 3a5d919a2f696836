"""The server's part: rounds of asking clients and averaging what they answer."""

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from icckd.errors import Interrupted, UserError, reason
from icckd.methods.pkd import Group, PkdSettings, confusion_groups, weak_classes
from icckd.models import Model
from icckd.procedures.federated.clients import Clients
from icckd.procedures.federated.messages import Question, State, Tally, state_of
from icckd.settings import TrainingSettings
from icckd.training import Checkpoint, Record, StopSignal

_STATE_FORMAT = 1


class Rounds:
    """A training by rounds, each of which is an epoch to whoever looks on: `icckd.procedures.Trainable`.

    In a round all `clients` train the network from where it stands, and their networks are averaged. After the warm-up
    of `pkd`, unless its weight is 0, they are asked first which classes it takes for which; experts of the groups
    that this shows are trained, from where the network stands; and from then on clients learn from them.

    `steps` is how many steps all clients take in a round. What is saved is how far the answers to the last question
    have come, so that no client need answer again.
    """

    def __init__(self, model: Model, pkd: PkdSettings, settings: TrainingSettings, clients: Clients, steps: int):
        self.model = model
        self.pkd = pkd
        self.settings = settings
        self.clients = clients
        self.warmup = pkd.warmup(settings.epochs)
        self.batches: Sequence[int] = range(steps)
        self.epoch = 0
        self.seconds = 0.0
        self.history: list[Record] = []
        self.confusion: Tensor | None = None
        self.weak: list[int] = []
        self.groups: tuple[Group, ...] = ()
        self._experts: list[State] = []
        self._expert_rounds = 0
        self._tally = Tally()
        self._bytes = {"to_clients": 0, "to_server": 0}
        self._clock = time.monotonic()

    def fit(
        self,
        checkpoint: Checkpoint,
        checkpoint_every: int,
        evaluate: Callable[[], Record],
        on_step: Callable[[int, int, float | None], None],
        on_epoch: Callable[[list[Record]], None],
        stop: StopSignal,
    ) -> None:
        """Train to the last round; `evaluate()` adds its numbers to each round's record.

        Saves to `checkpoint` at the start, after each client's answer (`checkpoint_every` 0: not then) and when all
        have answered. Raises Interrupted, having saved, once `stop` has received a signal: what a client of this
        process was at is then done again. Raises TrainingDiverged where such a client's network is not finite.
        """
        self._clock = time.monotonic()
        if not checkpoint.exists():
            checkpoint.save(self.state())
        while self.epoch < self.settings.epochs:
            question = self._question()
            try:
                for _ in self._gather(question, on_step, stop):
                    if checkpoint_every:
                        checkpoint.save(self.state())
            except Interrupted:
                checkpoint.save(self.state())
                raise
            self._conclude(question)
            if question.kind == "train":
                self._finish_round(evaluate())
            self._tally = Tally()
            checkpoint.save(self.state())
            if question.kind == "train":
                on_epoch(self.history)
            if stop.received:  # During the evaluation.
                raise Interrupted(stop.received)

    def _gather(
        self, question: Question, on_step: Callable[[int, int, float | None], None], stop: StopSignal
    ) -> Iterator[int]:
        """Ask whoever has not answered yet, and count what comes: from whom, one after another."""
        taken = self._tally.steps

        def step(loss: float | None, steps: int) -> None:
            nonlocal taken
            taken += steps
            on_step(self.epoch, min(taken, len(self.batches)) if question.kind == "train" else 0, loss)
            if stop.received:
                raise Interrupted(stop.received)

        whom = set(range(len(self.clients.images))) - set(self._tally.answered)
        for number, answer in self.clients.ask(question, whom, step):
            self._tally.add(number, answer)
            self._bytes["to_clients"] += question.bytes
            self._bytes["to_server"] += answer.bytes
            yield number

    def _question(self) -> Question:
        """What is to be asked next: it follows from how far the training is."""
        network, rounds = state_of(self.model), self.pkd.expert_rounds
        if self.pkd.weight and self.epoch >= self.warmup:
            if self.confusion is None:
                return Question("confusion", self.epoch, network)
            if self._expert_rounds < rounds * len(self.groups):
                number, round_of_expert = divmod(self._expert_rounds, rounds)
                return Question("expert", round_of_expert, self._experts[number], (self.groups[number],))
        return Question("train", self.epoch, network, self.groups, tuple(self._experts))

    def _conclude(self, question: Question) -> None:
        """Change what the answers to `question` change."""
        if question.kind == "confusion":
            assert self._tally.confusion is not None
            self._divide(self._tally.confusion)
            self._experts = [question.network for _ in self.groups]
        elif question.kind == "expert":
            number = self._expert_rounds // self.pkd.expert_rounds
            self._experts[number] = self._tally.network(question.network)
            self._expert_rounds += 1
        else:
            self.model.load_state_dict(self._tally.network(question.network))

    def _divide(self, confusion: Tensor) -> None:
        self.confusion = confusion
        self.weak = weak_classes(confusion, self.pkd.threshold)
        self.groups = tuple(confusion_groups(confusion, self.weak, self.pkd.confusion))

    def _finish_round(self, evaluation: Record) -> None:
        self.epoch += 1
        self._tick()
        before = self.history[-1] if self.history else {"step": 0, "skipped_steps": 0}
        self.history.append(
            {
                "epoch": self.epoch,
                "step": before["step"] + self._tally.steps,
                **{f"train_{name}": value for name, value in self._tally.losses().items()},
                "skipped_steps": before["skipped_steps"] + self._tally.skipped,
                "clients": len(self._tally.answered),
                "bytes_to_clients": self._bytes["to_clients"],
                "bytes_to_server": self._bytes["to_server"],
                **evaluation,
                "seconds": self.seconds,
            }
        )
        self._bytes = dict.fromkeys(self._bytes, 0)

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
            "seconds": self.seconds,
            "history": self.history,
            "model": state_of(self.model),
            "confusion": self.confusion,
            "experts": self._experts,
            "expert_rounds": self._expert_rounds,
            "tally": self._tally.state(),
            "bytes": self._bytes,
        }

    def restore(self, state: Record) -> None:
        """Go back to a state that `state()` returned. Raises UserError where it is of another kind of training."""
        try:
            if state["format"] != _STATE_FORMAT:
                raise ValueError(f"format {state['format']}, this version reads {_STATE_FORMAT}")
            self.model.load_state_dict(state["model"])
            self.epoch, self.seconds = int(state["epoch"]), float(state["seconds"])
            self.history = [dict(record) for record in state["history"]]
            if state["confusion"] is not None:
                classes = self.model.classes
                self._divide(state["confusion"].view(classes, classes))
            self._experts = [{name: torch.as_tensor(x) for name, x in each.items()} for each in state["experts"]]
            self._expert_rounds = int(state["expert_rounds"])
            self._tally = Tally.restored(state["tally"])
            self._bytes = {name: int(state["bytes"][name]) for name in self._bytes}
            if len(self._experts) != len(self.groups):
                raise ValueError(f"{len(self._experts)} experts for {len(self.groups)} groups")
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"the checkpoint does not fit this training: {reason(error)}") from error
