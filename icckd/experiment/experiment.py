"""The stages of a run: data → trials of class augmentation, if wanted → teacher → student → report."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from icckd.data import Batches, ImageData, load_data
from icckd.data.digest import digests
from icckd.data.image_data import without_training_images
from icckd.data.order import Balance, balance_of
from icckd.distributed import ALONE, World
from icckd.distributed.parts import whole_tensors
from icckd.environment import describe
from icckd.errors import TrainingDiverged, UserError
from icckd.experiment.class_augmentation import Trial, crop_areas, search, trials
from icckd.experiment.evaluation import Predictions, finite, measure, predict, recall_at_1, training_measures
from icckd.experiment.event_files import EventFiles, summary_writer
from icckd.experiment.examination import Examination, data_in_force
from icckd.experiment.examples import choose_examples
from icckd.experiment.networks import Trained, load_teacher, untrained
from icckd.experiment.progress import Progress, TrainingProgress, no_progress
from icckd.experiment.rehearsal import rehearse, rehearse_attack
from icckd.experiment.relations import neighbour_agreement
from icckd.experiment.requirements import (
    check_batch_size,
    check_stage,
    device_of,
    is_data_free,
    needs_training_images,
    to_be_trained,
)
from icckd.experiment.robustness import measure_robustness
from icckd.experiment.run_folder import RunFolder
from icckd.files import write_whole
from icckd.methods import EvaluationSet, Findings, TrainingSet
from icckd.models import file_digest, save_model
from icckd.procedures import Lesson, Procedure, Trainable, procedure_of
from icckd.report import write_report
from icckd.settings import STAGES, Settings, TrainingSettings, check
from icckd.training import FrozenTeacher, StopSignal, Task, TeacherTask, Training

Results = dict[str, Any]


class Experiment:
    """A run with `settings`. Made only if everything it needs is there, so that a wrong setting costs nothing.

    `stages` are those to be trained; a teacher that is given (teacher.weights) is not. What only other stages would
    need is not asked for. `data`, where given, is what load_data makes of settings.data. `progress(stage, epochs,
    steps)` and `stop()` are entered for each training: the one is told how far it is, the other says when to end it.
    With `tensorboard`, each training's numbers are kept in event files too.
    `procedure` makes the student's, where it is not to be trained as its settings name alone would say.
    The processes of `world` make the run together: each with an Experiment of its own, in the same order of calls.
    Raises UserError for settings and files that are wrong.
    """

    def __init__(
        self,
        settings: Settings,
        stages: Sequence[str] = STAGES,
        *,
        data: ImageData | None = None,
        progress: Callable[[str, int, int], Progress] = TrainingProgress,
        stop: Callable[[], AbstractContextManager[StopSignal]] = StopSignal,
        world: World = ALONE,
        procedure: Callable[[Lesson], Procedure] = procedure_of,
        tensorboard: bool = False,
    ):
        self.stages = to_be_trained(settings, stages)
        check(settings, self.stages)
        self.settings = settings
        self.world = world
        self._tensorboard = tensorboard and world.first
        if self._tensorboard:
            summary_writer()
        self.device = world.connect(device_of(settings.device))
        for stage in self.stages:
            check_stage(stage, getattr(settings, stage), self.device, world.size)
        self.data = load_data(settings.data, train=needs_training_images(settings, stages)) if data is None else data
        for stage in self.stages:
            images = None if is_data_free(stage, settings) else len(self.data.train_images)
            balance = None if images is None else self._balance(stage)
            check_batch_size(stage, getattr(settings, stage), images, balance, world.size)
        weights = settings.teacher.weights
        self.given_teacher = None if weights is None else self._load_teacher("teacher.weights", Path(weights))
        if self.given_teacher is not None and not len(self.data.train_labels) and settings.data.mean is None:
            # Nothing else says how images should be normalised.
            description = self.given_teacher.description
            self.data = replace(self.data, mean=tuple(description.mean), std=tuple(description.std))
        self._procedure_of = procedure
        self._rehearse()
        self.summary: Results = {}
        self._progress, self._stop = progress if world.first else no_progress, stop
        self._wants_trials = bool(self.stages) and settings.data.class_augmentation.classes > 0
        if self._wants_trials:
            self._of_trial(next(trials(settings, self.data)))  # They are alike but for the crop.

    def run(self, folder: RunFolder, *, resume: bool = False, overwrite: bool = False) -> Results:
        """Train (or take) the teacher, distil the student if wanted, write everything to `folder`; the summary.

        With `resume`, a stage that is finished in `folder` is left as it is. Of several processes the first alone
        writes to `folder`, and all must be able to read it. Raises TrainingDiverged where a stage's training, or what
        it ends in, is not finite: that network is not saved, and nothing is distilled from it.
        """
        self._run_stages(folder, resume=resume, overwrite=overwrite)
        if self.world.first:
            write_report(folder.path)
        return self.summary

    def _run_stages(self, folder: RunFolder, *, resume: bool, overwrite: bool) -> None:
        if self.device.type == "cuda":
            torch.use_deterministic_algorithms(True, warn_only=True)
        self._open(folder, resume=resume, overwrite=overwrite)
        if self._wants_trials:
            self._choose_crops(folder)
        teacher = self._teacher(folder)
        if "student" in self.stages:
            self._student(folder, teacher)

    def evaluate(self, folder: RunFolder | None, *, resume: bool = False, overwrite: bool = False) -> Results:
        """The summary of the network that `teacher.weights` names, on the test images; kept in `folder` if given."""
        if self.given_teacher is None:
            raise UserError("teacher.weights is not set; name the network to evaluate with --teacher.weights PATH")
        if folder is not None:
            self._open(folder, resume=resume, overwrite=overwrite)
        if folder is None or not self._is_finished(folder, "teacher"):
            self._conclude(folder, "teacher", self.given_teacher, self._given_predictions, {})
        if folder is not None and self.world.first:
            write_report(folder.path)
        return self.summary

    def _open(self, folder: RunFolder, *, resume: bool, overwrite: bool) -> None:
        if self.given_teacher is not None:
            _ = self._given_predictions  # A teacher that is refused costs no results that --overwrite removes.

        def opened() -> Results:
            inputs = digests(self.data)
            if self.given_teacher is not None:
                inputs["teacher.weights"] = file_digest(Path(str(self.settings.teacher.weights)))
            folder.open(self.settings, inputs, resume=resume, overwrite=overwrite)
            return folder.read_summary()

        self.summary = self.world.from_first(opened)

    @cached_property
    def _given_predictions(self) -> Predictions:
        """What the given teacher says about the test images. Raises UserError where that is not finite."""
        assert self.given_teacher is not None
        model, description = self.given_teacher.model, self.given_teacher.description
        test = self._examination.test_batches(description.mean, description.std)
        predictions = predict(model.to(self.device), test, self.world)
        if not finite(predictions):
            raise UserError(
                f"teacher.weights {self.settings.teacher.weights} is a network whose answers on the test set are "
                "not finite; give one whose training did not diverge"
            )
        return predictions

    def _choose_crops(self, folder: RunFolder) -> None:
        """Find out by trials which classes get a milder crop, unless the summary tells."""
        if "class_augmentation" in self.summary:
            return
        self.summary["class_augmentation"] = search(self.settings, self.data, lambda trial: self._try(folder, trial))
        if self.world.first:
            folder.write_summary(self.summary)

    def _try(self, folder: RunFolder, trial: Trial) -> Results:
        """The measures of a trial's teacher, which is trained unless it is finished."""
        experiment = self._of_trial(trial)
        try:
            experiment._run_stages(folder.trial(str(trial.area)), resume=True, overwrite=False)
        except TrainingDiverged as error:
            raise TrainingDiverged(f"in a trial with crops from {trial.area:g} of the area {error}") from error
        return self.world.from_first(lambda: experiment.summary["teacher"])

    def _of_trial(self, trial: Trial) -> "Experiment":
        def progress(stage: str, epochs: int, steps: int) -> Progress:
            return self._progress(trial.name, epochs, steps)

        data, stop, world = trial.data, self._stop, self.world
        try:
            return Experiment(trial.settings, ("teacher",), data=data, progress=progress, stop=stop, world=world)
        except UserError as error:
            raise UserError(f"data.class_augmentation: {error}") from error

    def _teacher(self, folder: RunFolder) -> Trained:
        finished = self._is_finished(folder, "teacher")
        if self.given_teacher is not None:
            if not finished:
                self._conclude(folder, "teacher", self.given_teacher, self._given_predictions, {})
            return self.given_teacher
        if finished:
            return self._load_teacher("the run's teacher", folder.stage("teacher"))
        procedure = self.settings.student.loss.procedure()
        if "teacher" not in self.stages and procedure is not None and not procedure.asks_teacher:
            return self._untrained("teacher")
        settings = self.settings.teacher
        teacher = self._untrained("teacher")
        task = self._teaching(teacher)
        batches = self._training_batches("teacher", task.views, task.strong_views)
        in_force = replace(settings, batch_size=batches.batch_size)
        training = Training(self._prepared(task, settings), batches, in_force, self.world)
        predictions = self._fit(folder, "teacher", training)
        teacher = self._whole("teacher", teacher)
        results = {**_of_training(training), "method": settings.loss.method}
        self._conclude(folder, "teacher", teacher, predictions, results, task.findings)
        return teacher

    def _student(self, folder: RunFolder, teacher: Trained) -> None:
        if self._is_finished(folder, "student"):
            return
        loss = self.settings.student.loss
        student = self._untrained("student")
        procedure = self._procedure(student, teacher)
        training = procedure.training()
        predictions = self._fit(folder, "student", training)
        student = self._whole("student", student)
        results = {**_of_training(training), "method": loss.method, "settings": loss.in_force()}
        replaced = loss.procedure()
        if replaced is None or replaced.asks_teacher:
            results |= self._kept_of(teacher, predictions)
        self._conclude(folder, "student", student, predictions, results, procedure.findings)

    def _kept_of(self, teacher: Trained, student: Predictions) -> Results:
        """What the student's predictions on the test images keep of how its teacher relates them."""
        test = self._examination.test_batches(teacher.description.mean, teacher.description.std)
        taught = predict(teacher.model.to(self.device), test, self.world)
        return self.world.from_first(lambda: {"neighbour_agreement": neighbour_agreement(student, taught)})

    def _teaching(self, teacher: Trained) -> Task:
        data = self.data
        images, channels, height, width = data.train_images.shape
        people = None if data.people is None else data.people.train
        known = TrainingSet(data.train_labels, (channels, height, width), data.candidates, people)
        return TeacherTask(teacher.model.to(self.device), self.settings.teacher, images, self.world.group, known)

    def student_procedure(self) -> Procedure:
        """That of a student of which nothing is trained yet, nor of its teacher unless it is given."""
        return self._procedure(self._untrained("student"), self.given_teacher or self._untrained("teacher"))

    def _procedure(self, student: Trained, teacher: Trained) -> Procedure:
        own = (teacher.description.mean, teacher.description.std)
        lesson = Lesson(
            student=student.model.to(self.device),
            teacher=FrozenTeacher(teacher.model.to(self.device), own, (self.data.mean, self.data.std)),
            data=without_training_images(self.data) if is_data_free("student", self.settings) else self.data,
            settings=self.settings,
            device=self.device,
            batches=partial(self._training_batches, "student"),
            prepared=partial(self._prepared, settings=self.settings.student),
            world=self.world,
        )
        return self._procedure_of(lesson)

    def _whole(self, stage: str, trained: Trained) -> Trained:
        """`trained`, or, where each process has parts of its network, a network that has all."""
        if self.world.size == 1 or not getattr(self.settings, stage).shard_parameters:
            return trained
        tensors, trained = whole_tensors(trained.model), self._untrained(stage)
        trained.model.load_state_dict(tensors)
        return trained

    def _is_finished(self, folder: RunFolder, stage: str) -> bool:
        """Is `stage` told of in the summary, which is written last, and is its network still there?

        Raises UserError where its checkpoint is not one: nobody needs it any more, but it is none of this tool's.
        """

        def answer() -> bool:
            finished = stage in self.summary and folder.holds_model(stage)
            if finished and folder.checkpoint(stage).exists():
                folder.checkpoint(stage).load()
            return finished

        return self.world.from_first(answer)

    def _fit(self, folder: RunFolder, stage: str, training: Trainable) -> Predictions:
        """Train to the end, from the checkpoint if there is one; what the network then says about the test images.

        Raises TrainingDiverged where training or those answers are not finite.
        """
        checkpoint = folder.checkpoint(stage, self.world)
        with self._records(folder, stage) as write:
            if checkpoint.exists():
                training.restore(checkpoint.load())
                write(training.history)
            test = self._examination.test_batches(self.data.mean, self.data.std)
            seen = self._examination.training_sample(stage, self.data.mean, self.data.std)

            def on_epoch(history: list[Results]) -> None:
                write(history)
                progress.epoch(history[-1])

            try:
                with (
                    self._stop() as stop,
                    self._progress(stage, training.settings.epochs, len(training.batches)) as progress,
                ):
                    training.fit(
                        checkpoint,
                        self.settings.checkpoint_every,
                        evaluate=partial(self._after_epoch, training, test, seen),
                        on_step=progress.step,
                        on_epoch=on_epoch,
                        stop=stop,
                    )
                predictions = predict(training.model, test, self.world)
                _check_answers(predictions)
            except TrainingDiverged as error:
                raise TrainingDiverged(
                    f"the {stage}'s training diverged: {error}; start again, with a lower {stage}.learning_rate or a "
                    f"longer {stage}.warmup_epochs"
                ) from error
        return predictions

    @contextmanager
    def _records(self, folder: RunFolder, stage: str) -> Iterator[Callable[[list[Results]], None]]:
        """What keeps the history of a training, a record an epoch, in the files that are wanted."""
        events = EventFiles(folder.events(stage), self.settings) if self._tensorboard else None

        def write(history: list[Results]) -> None:
            if self.world.first:
                folder.write_metrics(stage, history)
            if events is not None:
                events.write(history)

        try:
            yield write
        finally:
            if events is not None:
                events.close()

    def _after_epoch(self, training: Trainable, test: Batches, seen: Batches | None) -> Results:
        """The measures of the network on test images and on training ones, if it is to be measured after this epoch."""
        done, epochs = training.epoch + 1, training.settings.epochs
        if done % self.settings.evaluation.every and done < epochs:
            return {}
        predictions = predict(training.model, test, self.world)
        of_seen = None if seen is None else predict(training.model, seen, self.world)

        def measured() -> Results:
            if done == epochs:  # An epoch before may still come right.
                _check_answers(predictions)
            measures = {k: value for k, value in measure(predictions).items() if not k.startswith("per_class")}
            return measures | ({} if of_seen is None else training_measures(of_seen))

        return self.world.from_first(measured)

    def _prepared(self, task: Task, settings: TrainingSettings) -> Task:
        """`task` on the device, its networks laid out, compiled and shared among processes as `settings` say."""
        task = task.to(self.device)
        if settings.sync_batch_norm and self.world.group is not None:
            from icckd.distributed.batch_norm import synchronise_batch_norm

            synchronise_batch_norm(task, self.world.group)
        for network in task.networks():
            if settings.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if settings.compile:
                network.compile()
        task.train_together(self.world, sharded=settings.shard_parameters)
        return task

    def _conclude(
        self,
        folder: RunFolder | None,
        stage: str,
        trained: Trained,
        predictions: Predictions,
        results: Results,
        find: Callable[[EvaluationSet], Findings] | None = None,
    ) -> None:
        """Save a stage's network, some of its predictions on the test images, and the summary so far.

        All of that is the first process's to do, but to ask the network about training images and attacked ones; the
        others wait.
        """
        examination = self._examination
        probe, attacked = examination.fine_probe(stage, trained), examination.attacked(trained)
        of_seen = examination.training_answers(stage, trained)

        def write() -> None:
            found = Findings() if find is None else find(examination.test_set(trained))
            measures = {**measure(predictions), "recall_at_1": recall_at_1(predictions)}
            measures |= {} if of_seen is None else training_measures(of_seen)
            measures |= {} if probe is None else probe.measure(predictions)
            robustness = {} if attacked is None else measure_robustness(attacked)
            self.summary[stage] = {**measures, "seconds": None, **robustness, **results, **found.numbers}
            if self.stages:
                self.summary["data"] = data_in_force(self.settings, self.data, self.stages)
            self.summary["environment"] = {**describe(self.device), "processes": self.world.size}
            if folder is not None:
                save_model(folder.stage(stage), trained.model, trained.description)
                examples = choose_examples(predictions, self.data.test_images)
                _save_tensors(folder.stage(stage) / "examples.safetensors", examples)
                if found.tensors:
                    _save_tensors(folder.findings(stage), found.tensors)
                folder.write_summary(self.summary)

        self.world.from_first(write)

    @property
    def _examination(self) -> Examination:
        return Examination(self.settings, self.data, self.device, self.world)

    def _untrained(self, stage: str) -> Trained:
        return untrained(stage, self.settings, self.data)

    def _load_teacher(self, name: str, path: Path) -> Trained:
        return load_teacher(name, path, self.settings, self.data)

    def _rehearse(self) -> None:
        """Find out now, not after the teacher's training, that a loss cannot be computed, or an attack."""
        teacher = self.given_teacher or self._untrained("teacher")
        tasks: dict[str, Callable[[], list[Task]]] = {
            "teacher": lambda: [self._teaching(teacher)],
            "student": lambda: self.student_procedure().tasks(),
        }
        for stage in self.stages:
            rehearse(stage, tasks[stage], self.data, self.device, self.world.size)
        attack = self.settings.evaluation.attack
        if attack is None:
            return
        measured = {stage: self._untrained(stage) for stage in self.stages}
        if self.given_teacher is not None:
            measured["teacher"] = self.given_teacher
        for stage, network in measured.items():
            rehearse_attack(attack, stage, network.model.to(self.device))

    def _balance(self, stage: str) -> Balance | None:
        batch_size = getattr(self.settings, stage).batch_size
        return balance_of(self.settings.data, batch_size, self.data.train_labels.numpy(), stage)

    def _training_batches(
        self,
        stage: str,
        views: int = 1,
        strong_views: int = 0,
        *,
        part: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Batches:
        """Of the training images, or of those at the places `part`, whose batches are not balanced."""
        settings = getattr(self.settings, stage)
        balance = self._balance(stage) if part is None else None
        size = settings.batch_size if balance is None else balance.batch_size
        images, labels = self.data.train_images, self.data.train_labels
        if part is not None:
            images, labels = images[part], labels[part]
        return Batches(
            images,
            labels,
            batch_size=batch_size or size,
            mean=self.data.mean,
            std=self.data.std,
            augmentation=self.data.augmentation,
            views=views,
            shuffle=True,
            seed=self.settings.seed,
            device=self.device,
            drop_last=settings.drop_last,
            balance=balance,
            part=(self.world.rank, self.world.size),
            strong_views=strong_views,
            strong_augmentation=self.data.strong_augmentation,
            crop_areas=crop_areas(self.summary["class_augmentation"], self.data) if self._wants_trials else None,
        )


def _of_training(training: Trainable) -> Results:
    """What a summary tells of a training: its seconds, and the best measured epoch on the test images that chose it."""
    measured = (record for record in training.history if "test_accuracy" in record)
    best = max(measured, key=lambda record: record["test_accuracy"])
    return {
        "seconds": training.seconds,
        "best_test_accuracy": best["test_accuracy"],
        "best_epoch": best["epoch"],
    }


def _check_answers(predictions: Predictions) -> None:
    """Raises TrainingDiverged; of several processes on the first, which alone has predictions."""
    if not finite(predictions):
        raise TrainingDiverged("the trained network's answers on the test set are not finite")


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_whole(path, lambda written: save_file(dict(tensors), written))
