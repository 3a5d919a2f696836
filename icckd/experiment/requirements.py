"""What a stage cannot do without, found out before anything is trained."""

from collections.abc import Sequence

import torch

from icckd import backends
from icckd.data.order import Balance
from icckd.errors import UserError
from icckd.methods.intra_class import IntraClass
from icckd.models import ARCHITECTURES
from icckd.settings import Settings, StudentSettings, TeacherSettings, TrainingSettings
from icckd.training.optimizers import layer_wise_library


def device_of(name: str) -> torch.device:
    """The device that the setting `device` means here. Raises UserError where it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch finds no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def check_stage(stage: str, settings: TeacherSettings | StudentSettings, device: torch.device, processes: int) -> None:
    """Raise UserError where so many processes cannot train `stage` on `device`: not after the stage before it."""
    ARCHITECTURES.find(settings.arch, f"{stage}.arch")
    if settings.cuda_graph and device.type != "cuda":
        raise UserError(f"{stage}.cuda_graph is true, but there is no GPU to capture for: device is {device}")
    if settings.cuda_graph and processes > 1:
        raise UserError(f"{stage}.cuda_graph is true, but there are {processes} processes; give it with one")
    if processes > 1 and isinstance(settings, StudentSettings) and settings.loss.procedure() is not None:
        raise UserError(
            f"student.loss.method is {settings.loss.method}, which is the work of one process, and there are "
            f"{processes}; start one"
        )
    backend = settings.loss.backend
    reason = None if backend == "auto" else backends.why_not(backend, device, torch.float32)
    if reason:
        raise UserError(f"{stage}.loss.backend is {backend}: backend {backend!r} cannot run here: {reason}")
    if settings.optimizer != "sgd":
        layer_wise_library(f"{stage}.optimizer", settings.optimizer)


def to_be_trained(settings: Settings, stages: Sequence[str]) -> list[str]:
    """Those of `stages` that are: a teacher that is given (teacher.weights) is not."""
    return [stage for stage in stages if stage != "teacher" or settings.teacher.weights is None]


def is_data_free(stage: str, settings: Settings) -> bool:
    """Is the network of `stage` trained without the training images?"""
    procedure = settings.student.loss.procedure() if stage == "student" else None
    return procedure is not None and procedure.data_free


def needs_training_images(settings: Settings, stages: Sequence[str]) -> bool:
    """Does a run that trains `stages` need them? Not where all that it trains is data-free."""
    trained = to_be_trained(settings, stages)
    return not trained or not all(is_data_free(stage, settings) for stage in trained)


def check_batch_size(
    stage: str, settings: TrainingSettings, images: int | None, balance: Balance | None, processes: int
) -> None:
    """Raise UserError where so many training images make no batches of the stage's, or no parts of batches.

    `images`: None where it learns from none of them.
    """
    size, name = settings.batch_size, f"{stage}.batch_size"
    if balance is not None and balance.batch_size != size:
        size, name = balance.batch_size, "data.classes_per_batch · data.samples_per_class"
    most = max(size // processes // 2, 1)
    if settings.accumulate > most:
        among = "" if processes == 1 else f" for {processes} processes"
        raise UserError(f"{stage}.accumulate is {settings.accumulate}; {name} is {size}{among}: give {most} at most")
    if isinstance(settings, TeacherSettings) and settings.loss.method == IntraClass.name:
        neighbours = settings.loss.neighbours
        if neighbours >= size:
            raise UserError(f"teacher.loss.neighbours is {neighbours}, but {name} is {size}: give {size - 1} at most")
    if images is None:
        return
    if size > images:
        raise UserError(f"{name} is {size}, more than the {images} to train on")
    if images % size == 1 and not settings.drop_last:
        raise UserError(
            f"{name} is {size}, which leaves a last batch of one of the {images} to train on; give another "
            f"size, or set {stage}.drop_last"
        )
