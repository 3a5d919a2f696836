"""The stages of a run: data → teacher → student → report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from icckd import backends
from icckd.data import Batches, load_data
from icckd.environment import describe
from icckd.errors import UserError
from icckd.evaluation import measure, predict
from icckd.files import write_whole
from icckd.model_files import ModelDescription, load_model, save_model
from icckd.models import ARCHITECTURES, Model, build_model
from icckd.progress import TrainingProgress
from icckd.report import write_report
from icckd.report.examples import choose_examples
from icckd.run_folder import RunFolder
from icckd.settings import Settings, TrainingSettings, check
from icckd.training import DistillationTask, FrozenTeacher, StopSignal, Task, TeacherTask, Training

_EVALUATION_BATCH = 500
Results = dict[str, Any]


@dataclass
class Trained:
    """A trained network and what its model.json says."""

    model: Model
    description: ModelDescription


class Experiment:
    """A run with `settings`. Made only if everything it needs is there, so that a wrong setting costs nothing.

    Raises UserError for settings and files that are wrong.
    """

    def __init__(self, settings: Settings):
        check(settings)
        self.settings = settings
        self.device = _device(settings.device)
        for name, backend in (
            ("teacher", settings.teacher.loss.backend),
            ("student", settings.student.loss.backend),
        ):
            _check_backend(f"{name}.loss.backend", backend, self.device)
        self.data = load_data(settings.data)
        for name, stage in (("teacher", settings.teacher), ("student", settings.student)):
            self._check_stage(name, stage)
        self.given_teacher = self._load_teacher(settings.teacher.weights)
        self.summary: Results = {}

    def run(self, folder: RunFolder, *, with_student: bool, resume: bool = False, overwrite: bool = False) -> Results:
        """Train (or take) the teacher, distil the student if wanted, write everything to `folder`; the summary."""
        folder.open(self.settings, resume=resume, overwrite=overwrite)
        if self.device.type == "cuda":
            torch.use_deterministic_algorithms(True, warn_only=True)
        teacher = self._teacher(folder)
        if with_student:
            self._student(folder, teacher)
        write_report(folder.path)
        return self.summary

    def evaluate(self, folder: RunFolder | None, *, overwrite: bool = False) -> Results:
        """The summary of the network that `teacher.weights` names, on the test images; kept in `folder` if given."""
        if self.given_teacher is None:
            raise UserError("teacher.weights is not set; name the network to evaluate with --teacher.weights PATH")
        if folder is not None:
            folder.open(self.settings, overwrite=overwrite)
        self._conclude(folder, "teacher", self.given_teacher, {})
        if folder is not None:
            write_report(folder.path)
        return self.summary

    def _teacher(self, folder: RunFolder) -> Trained:
        if self.given_teacher is not None:
            self._conclude(folder, "teacher", self.given_teacher, {})
            return self.given_teacher
        settings = self.settings.teacher
        teacher = self._untrained(settings)
        task = TeacherTask(teacher.model, settings, len(self.data.classes), teacher.model.feature_dim)
        seconds = self._train(folder, "teacher", task, settings)
        self._conclude(folder, "teacher", teacher, {"seconds": seconds})
        return teacher

    def _student(self, folder: RunFolder, teacher: Trained) -> None:
        settings = self.settings.student
        student = self._untrained(settings)
        own = (teacher.description.mean, teacher.description.std)
        frozen = FrozenTeacher(teacher.model, own, (self.data.mean, self.data.std))
        task = DistillationTask(student.model, frozen, settings.loss)
        seconds = self._train(folder, "student", task, settings)
        self._conclude(folder, "student", student, {"seconds": seconds, "method": settings.loss.method})

    def _train(self, folder: RunFolder, stage: str, task: Task, settings: TrainingSettings) -> float:
        """Train `task` to the end, from its checkpoint if there is one; the seconds that took in all."""
        training = Training(task.to(self.device), self._training_batches(task.views, settings), settings)
        checkpoint = folder.checkpoint(stage)
        if checkpoint.exists():
            training.restore(checkpoint.load())
            folder.write_metrics(stage, training.history)
        test = self._test_batches(self.data.mean, self.data.std)
        with (
            StopSignal() as stop,
            TrainingProgress(stage, settings.epochs, len(training.batches)) as progress,
        ):

            def on_epoch(history: list[Results]) -> None:
                folder.write_metrics(stage, history)
                progress.epoch(history[-1])

            training.fit(
                checkpoint,
                self.settings.checkpoint_every,
                evaluate=lambda: _epoch_measures(task.model, test),
                on_step=progress.step,
                on_epoch=on_epoch,
                stop=stop,
            )
        return training.seconds

    def _conclude(self, folder: RunFolder | None, stage: str, trained: Trained, results: Results) -> None:
        """Evaluate a stage's network; save it, some of its predictions, and the summary so far."""
        test = self._test_batches(trained.description.mean, trained.description.std)
        predictions = predict(trained.model.to(self.device), test)
        self.summary[stage] = {**measure(predictions), "seconds": None, **results}
        self.summary["environment"] = describe(self.device)
        if folder is not None:
            save_model(folder.stage(stage), trained.model, trained.description)
            examples = choose_examples(predictions, self.data.test_images)
            write_whole(folder.stage(stage) / "examples.safetensors", lambda path: save_file(examples, path))
            folder.write_summary(self.summary)

    def _untrained(self, settings: TrainingSettings) -> Trained:
        torch.manual_seed(self.settings.seed)
        data = self.data
        _, channels, _, size = data.train_images.shape
        model = build_model(settings.arch, channels=channels, classes=len(data.classes), image_size=size)
        description = ModelDescription(
            settings.arch, list(data.classes), channels, size, list(data.mean), list(data.std)
        )
        return Trained(model, description)

    def _check_stage(self, name: str, settings: TrainingSettings) -> None:
        """Find out now, not after the teacher's training, that a stage cannot be built."""
        if settings.arch not in ARCHITECTURES:
            raise UserError(f"{name}.arch is {settings.arch!r}; it should be one of {', '.join(ARCHITECTURES)}")
        images = len(self.data.train_images)
        if settings.batch_size > images:
            raise UserError(f"{name}.batch_size is {settings.batch_size}, more than the {images} training images")

    def _load_teacher(self, weights: str | None) -> Trained | None:
        if weights is None:
            return None
        model, description = load_model(Path(weights))
        _, channels, _, size = self.data.train_images.shape
        expected = (list(self.data.classes), channels, size)
        if (description.classes, description.channels, description.image_size) != expected:
            raise UserError(
                f"teacher.weights {weights} is a network for {len(description.classes)} classes of "
                f"{description.channels}×{description.image_size}×{description.image_size} images; {self.data.name} "
                f"has {len(self.data.classes)} classes of {channels}×{size}×{size} images, or other class names"
            )
        return Trained(model, description)

    def _training_batches(self, views: int, settings: TrainingSettings) -> Batches:
        return Batches(
            self.data.train_images,
            self.data.train_labels,
            batch_size=settings.batch_size,
            mean=self.data.mean,
            std=self.data.std,
            augmentation=self.data.augmentation,
            views=views,
            shuffle=True,
            seed=self.settings.seed,
            device=self.device,
            drop_last=True,
        )

    def _test_batches(self, mean: Sequence[float], std: Sequence[float]) -> Batches:
        return Batches(
            self.data.test_images,
            self.data.test_labels,
            batch_size=_EVALUATION_BATCH,
            mean=mean,
            std=std,
            augmentation=None,
            views=1,
            shuffle=False,
            seed=0,
            device=self.device,
            drop_last=False,
        )


def _epoch_measures(model: torch.nn.Module, test: Batches) -> Results:
    measures = measure(predict(model, test))
    return {name: value for name, value in measures.items() if name != "per_class_accuracy"}


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch finds no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def _check_backend(setting: str, backend: str, device: torch.device) -> None:
    reason = None if backend == "auto" else backends.why_not(backend, device, torch.float32)
    if reason:
        raise UserError(f"{setting} is {backend}: backend {backend!r} cannot run here: {reason}")
