"""A client: some of the training images, and what it finds in them for a server."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from icckd.data import Batches, plain_batches
from icckd.errors import TrainingDiverged
from icckd.methods.pkd import Pkd
from icckd.models import Model, not_finite
from icckd.models.modes import evaluating
from icckd.procedures.federated.messages import Answer, Question, State, state_of
from icckd.procedures.federated.partition import LEAST_IMAGES
from icckd.procedures.federated.tasks import ExpertTask, LocalTask
from icckd.procedures.procedure import Lesson
from icckd.training import Task, Training
from icckd.training.loop import LOOK_EVERY, MAX_SKIPS_IN_A_ROW

# First word of the seeds of what networks draw, such as dropout.
_LOCAL = 4
# Is told the loss of the last local step, where it was read, and how many there were since; may raise to end the work.
OnStep = Callable[[float | None, int], None]


class Clients(Protocol):
    """All clients of a server, wherever they are; `images` has the number of training images of each."""

    @property
    def images(self) -> Sequence[int]: ...

    def ask(self, question: Question, whom: Collection[int], on_step: OnStep) -> Iterator[tuple[int, Answer]]:
        """Who of `whom` answers, by number, rising, and what. One at least; whoever else is not there is left out."""


class Workshop:
    """Where clients of one process train, one after another: a network of the student's kind, and its tasks."""

    def __init__(self, lesson: Lesson, method: Pkd):
        self.lesson = lesson
        self._plain = copy.deepcopy(lesson.student)
        self.network = copy.deepcopy(lesson.student)
        self.local = LocalTask(self.network, method)
        self.expert = ExpertTask(self.network, method)

    def tasks(self) -> list[Task]:
        """Every kind of task, as it is when there is an expert."""
        self.local.groups, self.local.experts = (self.expert.classes,), [self._plain]
        return [self.local, self.expert]

    def prepare(self) -> None:
        """Lay out and compile the network as the settings say."""
        for task in (self.local, self.expert):
            self.lesson.prepared(task)

    def load(self, question: Question) -> None:
        """Take what the question is about, as if nothing had been asked before."""
        self.network.load_state_dict(question.network)
        self.local.groups = question.groups
        self.local.experts = [self._with(state) for state in question.experts]

    def _with(self, state: State) -> Model:
        expert = copy.deepcopy(self._plain)
        expert.load_state_dict(state)
        return expert.requires_grad_(False)


class Client:
    """Client `number`, which has the training images at the places `part`, int64, and trains in `workshop`.

    It keeps nothing from one question to the next, and what it answers is a pure function of the question.
    """

    def __init__(self, number: int, part: Tensor, workshop: Workshop):
        self.number = number
        self.part = part
        self.workshop = workshop
        self._lesson = workshop.lesson

    def answer(self, question: Question, on_step: OnStep) -> Answer:
        """What is asked for. Raises TrainingDiverged where training ends in what is not finite."""
        settings = self._lesson.settings
        which = [_LOCAL, settings.seed, self.number, question.round, len(question.kind), *sum(question.groups, ())]
        torch.manual_seed(int(np.random.default_rng(which).integers(2**63)))
        self.workshop.load(question)
        if question.kind == "confusion":
            return self._confusion()
        if question.kind == "expert":
            return self._train_expert(question, on_step)
        return self._train(self.workshop.local, self.part, question.round, settings.federated.rounds, on_step)

    def steps_of_round(self) -> int:
        """How many steps a round of training takes."""
        return self._lesson.settings.federated.local_epochs * len(self._batches(self.part))

    def _confusion(self) -> Answer:
        data, network = self._lesson.data, self.workshop.network
        images, labels, classes = data.train_images[self.part], data.train_labels[self.part], network.classes
        predicted = []
        with evaluating(network), torch.inference_mode():
            for batch in plain_batches(images, labels, data.mean, data.std, self._lesson.device):
                predicted.append(network(batch.views[0])[1].argmax(1).cpu())
        pairs = labels * classes + torch.cat(predicted)
        return Answer(len(self.part), confusion=torch.bincount(pairs, minlength=classes**2).view(classes, classes))

    def _train_expert(self, question: Question, on_step: OnStep) -> Answer:
        (group,) = question.groups
        part = self.part[torch.isin(self._lesson.data.train_labels[self.part], torch.tensor(group))]
        if len(part) < LEAST_IMAGES:
            return Answer(0)
        self.workshop.expert.classes = group
        rounds = self.workshop.local.method.settings.expert_rounds
        return self._train(self.workshop.expert, part, question.round, rounds, on_step)

    def _train(self, task: Task, part: Tensor, number: int, rounds: int, on_step: OnStep) -> Answer:
        """Train for round `number` of so many, of which the learning rate's schedule is."""
        batches, epochs = self._batches(part), self._lesson.settings.federated.local_epochs
        warmup = self._lesson.settings.student.warmup_epochs if task is self.workshop.local else 0.0
        settings = replace(self._lesson.training_settings(batches), epochs=rounds * epochs, warmup_epochs=warmup)
        training = Training(task, batches, settings)
        look_every, steps = LOOK_EVERY[self._lesson.device.type], 0
        for training.epoch in range(number * epochs, (number + 1) * epochs):
            training.step, task.epoch = 0, training.epoch
            for batch in batches.epoch(training.epoch):
                loss = training.train_step(batch)
                steps += 1
                on_step(None if steps % look_every else loss.item(), 1)
        network = state_of(task.model)
        self._check(training, network, number)
        counts = training.counts
        return Answer(len(part), network, losses=counts.means(), steps=steps, skipped=counts.skipped)

    def _check(self, training: Training, network: State, number: int) -> None:
        where, skipped = f"of client {self.number} in round {number + 1}", training.counts.longest
        if skipped > MAX_SKIPS_IN_A_ROW:
            raise TrainingDiverged(f"the loss or its gradient {where} was not finite in {skipped} steps in a row")
        spoilt = not_finite(network)
        if spoilt:
            raise TrainingDiverged(f"the network {where} is not finite, in {spoilt}")

    def _batches(self, part: Tensor) -> Batches:
        student = self._lesson.settings.student
        size = min(student.batch_size, len(part))
        while not student.drop_last and len(part) % size == 1:  # One image alone has no variance to be normalised by.
            size += 1
        return self._lesson.batches(part=part, batch_size=size)


class NearClients:
    """Clients of this process, which answer one after another."""

    def __init__(self, clients: Sequence[Client]):
        self._clients = clients
        self.images = [len(client.part) for client in clients]

    def ask(self, question: Question, whom: Collection[int], on_step: OnStep) -> Iterator[tuple[int, Answer]]:
        for number in sorted(whom):
            yield number, self._clients[number].answer(question, on_step)
