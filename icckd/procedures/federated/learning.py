"""A student that clients train together, each on its own images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from icckd.errors import UserError
from icckd.methods import EvaluationSet, Findings
from icckd.methods.pkd import Pkd, PkdSettings
from icckd.procedures.federated.clients import Client, Clients, NearClients, Workshop
from icckd.procedures.federated.partition import partition
from icckd.procedures.federated.rounds import Rounds
from icckd.procedures.procedure import Lesson, Procedure
from icckd.training import Task


class FederatedLearning(Procedure):
    """Rounds of clients, all of this process unless `clients_of` makes others in place of these.

    The teacher is not asked, and student.epochs counts for nothing: the learning rate's schedule goes over
    federated.rounds · federated.local_epochs passes. Optimisers begin each round anew.
    """

    def __init__(self, lesson: Lesson, clients_of: Callable[[Sequence[Client]], Clients] = NearClients):
        super().__init__(lesson)
        self.method = lesson.losses(Pkd)
        self._check()
        federated, labels = lesson.settings.federated, lesson.data.train_labels
        parts = partition(labels, federated.clients, federated.skew, lesson.settings.seed)
        self.workshop = Workshop(lesson, self.method)
        self.clients = [Client(number, part, self.workshop) for number, part in enumerate(parts)]
        self._clients_of = clients_of
        self._rounds: Rounds | None = None

    def _check(self) -> None:
        settings, pkd = self.lesson.settings, self._pkd
        federated, data = settings.federated, settings.data
        if pkd.weight and pkd.warmup_rounds is not None and pkd.warmup_rounds >= federated.rounds:
            raise UserError(
                f"student.loss.pkd.warmup_rounds is {pkd.warmup_rounds}; it should be null, or below "
                f"federated.rounds, {federated.rounds}, or student.loss.pkd.weight should be 0"
            )
        if settings.student.warmup_epochs > federated.rounds * federated.local_epochs:
            raise UserError(
                f"student.warmup_epochs is {settings.student.warmup_epochs:g}; it should be federated.rounds · "
                f"federated.local_epochs, {federated.rounds * federated.local_epochs}, at most"
            )
        if data.sampler != "random":
            raise UserError(f"data.sampler is {data.sampler}; it should be random beside student.loss.method pkd")
        if data.streaming:
            raise UserError("data.streaming is true; it should be false beside student.loss.method pkd")

    @property
    def _pkd(self) -> PkdSettings:
        return self.method.settings

    def tasks(self) -> list[Task]:
        return self.workshop.tasks()

    def training(self) -> Rounds:
        self.workshop.prepare()
        lesson = self.lesson
        settings = replace(lesson.settings.student, epochs=lesson.settings.federated.rounds)
        steps = sum(client.steps_of_round() for client in self.clients)
        self._rounds = Rounds(lesson.student, self._pkd, settings, self._clients_of(self.clients), steps)
        return self._rounds

    def findings(self, test: EvaluationSet) -> Findings:
        """For the summary, as `federated`.

        Images by client; bytes sent to and by those who answered, by round and in all; rounds of warm-up; the weak
        classes and the groups, by name, null where clients were never asked.
        """
        assert self._rounds is not None
        rounds, names = self._rounds, self.lesson.data.classes
        by_round = [record["bytes_to_clients"] + record["bytes_to_server"] for record in rounds.history]
        asked = rounds.confusion is not None
        federated: dict[str, Any] = {
            "images_by_client": list(rounds.clients.images),
            "bytes_sent": sum(by_round),
            "bytes_by_round": by_round,
            "warmup_rounds": rounds.warmup if self._pkd.weight else rounds.epoch,
            "weak_classes": [names[label] for label in rounds.weak] if asked else None,
            "groups": [[names[label] for label in group] for group in rounds.groups] if asked else None,
        }
        return Findings({"federated": federated})
