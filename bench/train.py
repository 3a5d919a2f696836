"""Speed of training steps beside the bare network, and of their input beside a DataLoader; each case in one run.

In a step is what a run does: `icckd.data.Batches` makes the batch's views from uint8 images on the device (crop, flip,
normalise), and `icckd.training.Training` trains on it (copies of the running statistics; a student's teacher forward;
forward, losses, backward; the gradient's norm; SGD; what a class memory pushes; counts of steps and sums of losses).
Evaluation, checkpoints and progress are not. Nearly all arithmetic is the network's: the floor is the bare network's
forward, F.cross_entropy, backward and SGD on ready float tensors of as many views, and for a second view without
gradient, or a student that learns from a teacher, a network's forward too. Every sample is an anchor of the intra-class
loss: as much work as there can be. Deterministic algorithms on a GPU, as in a run, for all.

The input alone is bound by bytes: the floor converts the uint8 numbers of as many views to float32. A call makes
16 batches from nothing to the last, so that a DataLoader's workers stand still while others are timed.

Images of 32×32 pixels, 50,000 of 100 classes. An image counts once, however many views of it there are.

Streamed input is 512 JPEG files of about 256×256 pixels, of which a call makes one epoch, in two processes: boxes as of
the paper's protocol for ImageNet, resized, flipped, normalised. Its floor only decodes the files, in two processes too.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.intra_class import add_arguments, save
from bench.train_input import BATCHES, FLOOR, LOADER, MEAN, RESIDENT, STD, input_contenders, resident
from bench.train_streamed import BY_IMAGE, DECODING, STREAMED, streamed_contenders, write_photographs
from icckd.bench import measure
from icckd.bench.measure import Row
from icckd.models import Model, build_model
from icckd.settings import MemorySettings, StudentLossSettings, TeacherLossSettings, TeacherSettings, TrainingSettings
from icckd.training import DistillationTask, FrozenTeacher, Task, TeacherTask, Training

CLASSES, IMAGES, QUICK_IMAGES = 100, 50_000, 64
QUICK = (["convnet-small"], [8])
NETWORKS = ["convnet-large", "resnet20", "wrn_16_2"]
STREAMED_FILES, STREAMED_SIDE, STREAMED_SIZES, STREAMED_BATCH = 512, 256, (64, 224), 128
BATCH_SIZES = {"cpu": [64, 256], "cuda": [64, 256, 1024]}
STUDENTS = {"convnet-large": "convnet-small"}
OTHER_STUDENT = "resnet8"
ONE_VIEW, TWO_VIEWS = "cross-entropy, one view", "cross-entropy, two views"
INTRA_CLASS, PREVIOUS_EPOCH = "intra-class, two views", "intra-class, previous epoch"


def _intra_class(**settings: Any) -> TeacherSettings:
    return TeacherSettings(loss=TeacherLossSettings(weight=0.02, margin=-1.0), **settings)


TEACHERS = {
    ONE_VIEW: TeacherSettings(loss=TeacherLossSettings(weight=0.0)),
    TWO_VIEWS: TeacherSettings(loss=TeacherLossSettings(weight=0.0, cross_entropy_views="both")),
    INTRA_CLASS: _intra_class(),
    "the same, memory of 64 a class": _intra_class(memory=MemorySettings(capacity=64)),
    "the same, memory of 64 a class in float8": _intra_class(memory=MemorySettings(capacity=64, dtype="float8")),
    "the same, accumulated in 4 parts": _intra_class(accumulate=4),
    "intra-class, second view detached": _intra_class(positive="second-view-detached"),
    PREVIOUS_EPOCH: _intra_class(positive="previous-epoch"),
}
METHODS = ["none", "kd", "kd+rkd"]
# Steps on a GPU follow each other closely, as in a run.
STEPS = {"cpu": 1, "cuda": 5}
# The intra-class loss beside the cross-entropy alone, with as many views.
MOST_OVER_PLAIN, LEAST_OVER_LOADER = 1.05, 5.0


@dataclass
class Stepper:
    """What makes one step, of so many views of each image; its floor's name; the training that it is a step of."""

    step: Callable[[], Any]
    views: int
    floor: str
    training: Training | None = None


@dataclass
class Case:
    """A network as teacher, its student, and B images a batch of `images`, uint8 (N, 3, 32, 32), `labels` (N,)."""

    network: str
    batch: int
    images: Tensor
    labels: Tensor

    @property
    def student(self) -> str:
        return STUDENTS.get(self.network, OTHER_STUDENT)

    def make(self, network: str) -> Model:
        return build_model(network, classes=CLASSES).to(self.images.device)

    def teachers(self) -> dict[str, Stepper]:
        """The teacher's steps, by name."""
        floors = {1: "floor: bare network, one view", 2: "floor: bare network, two views"}
        detached = "floor: bare network, one view, another's forward"
        steppers = {floor: self._bare(self.make(self.network), views, floor) for views, floor in floors.items()}
        steppers[detached] = self._bare(self.make(self.network), 1, detached, self.make(self.network))
        for name, settings in TEACHERS.items():
            task = TeacherTask(self.make(self.network), settings, len(self.images))
            _fill(task)
            floor = detached if task.positive == "second-view-detached" else floors[task.views]
            steppers[name] = self._training(task, floor, settings.accumulate)
        return steppers

    def students(self) -> dict[str, Stepper]:
        """The student's steps, by name."""
        alone, both = "floor: bare student", "floor: bare student, teacher's forward"
        teacher = self.make(self.network).eval()
        steppers = {
            alone: self._bare(self.make(self.student), 1, alone),
            both: self._bare(self.make(self.student), 1, both, teacher),
        }
        for method in METHODS:
            frozen = FrozenTeacher(teacher, (MEAN, STD), (MEAN, STD))
            loss = StudentLossSettings(method=method)
            task = DistillationTask(self.make(self.student), frozen, self.labels, loss)
            steppers[f"student: {method}"] = self._training(task, both if task.methods else alone)
        return steppers

    def _training(self, task: Task, floor: str, accumulate: int = 1) -> Stepper:
        settings = TrainingSettings(epochs=1000, batch_size=self.batch, accumulate=accumulate)
        batches = resident(self.images, self.labels, self.batch, task.views)
        training = Training(task.to(self.images.device), batches, settings)
        return Stepper(_forever(training).__next__, task.views, floor, training)

    def _bare(self, model: Model, views: int, floor: str, teacher: Model | None = None) -> Stepper:
        images = torch.randn(views * self.batch, *self.images.shape[1:], device=self.images.device)
        labels = self.labels[: self.batch].repeat(views)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)

        def step() -> None:
            if teacher is not None:
                with torch.inference_mode():
                    teacher(images)
            _, logits = model(images)
            optimizer.zero_grad()
            cross_entropy(logits, labels).backward()
            optimizer.step()

        return Stepper(step, views, floor)


def make_data(images: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images, uint8 (N, 3, 32, 32), and their labels (N,), uniform over the classes, on the device."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, 32, 32), dtype=torch.uint8, generator=random)
    return pixels.to(device), torch.randint(CLASSES, (images,), generator=random).to(device)


def _fill(task: TeacherTask) -> None:
    """What it remembers, as full as it soon is."""
    memory, latest = task.memory, task.latest
    if memory is not None:
        labels = torch.arange(memory.num_classes, device=memory.slots.device).repeat_interleave(memory.capacity)
        memory.push(torch.randn(len(labels), memory.dim, device=labels.device), labels)
    if latest is not None:
        latest.embeddings.normal_()
        latest.known.fill_(True)


def _forever(training: Training) -> Iterator[Tensor]:
    """Step after step, epoch after epoch, from the second one on: it has a previous one."""
    for epoch in itertools.count(1):
        training.epoch, training.task.epoch, training.step = epoch, epoch, 0
        for batch in training.batches.epoch(epoch):
            yield training.train_step(batch)


def run_steps(case: Case, network: str, steppers: dict[str, Stepper], seconds: float) -> Iterator[Row]:
    """A row for each of `steppers`, steps of `network`. Raises RuntimeError where one's loss was not finite."""
    print(f"\n{network}, batch {case.batch}")
    device = case.images.device
    steps = STEPS[device.type]
    calls: dict[str, measure.Contender] = {
        name: lambda k, step=stepper.step: [step() for _ in range(steps)] for name, stepper in steppers.items()
    }
    times = measure.interleaved(calls, measure.clock(device), seconds, too_slow=float("inf"), least=5)
    found = {name: measure.quantiles([s / steps for s in values]) for name, values in times.items()}
    for name, quantiles in found.items():
        stepper = steppers[name]
        if stepper.training is not None and stepper.training.counts.skipped:
            raise RuntimeError(f"{name}: {stepper.training.counts.skipped} steps were skipped: not finite")
        row = {
            "benchmark": "train",
            "part": "steps",
            "contender": name,
            "network": network,
            "teacher": case.network,
            "batch": case.batch,
            "views": stepper.views,
            "dtype": "float32",
            **quantiles,
            "images_per_second": 1e3 * case.batch / quantiles["median_ms"],
            "times_floor": _ratio(name, stepper.floor, found),
            "times_one_view": _ratio(name, ONE_VIEW, found) if stepper.views == 1 and ONE_VIEW in found else None,
            "times_two_views": _ratio(name, TWO_VIEWS, found) if stepper.views == 2 else None,
            **measure.conditions(device),
        }
        measure.print_row(row, f"{row['images_per_second']:.0f} images/s", f"{row['times_floor']:.3f} × floor")
        yield row


def run_input(case: Case, views: int, seconds: float) -> Iterator[Row]:
    """A row for each way to make a batch of so many views, and for the floor."""
    print(f"\ninput alone, batch {case.batch}, views {views}")
    calls = input_contenders(case.images, case.labels, case.batch, views)
    facts = {"part": "input", "batch": case.batch, "views": views}
    yield from _input_rows(facts, calls, BATCHES, (FLOOR, LOADER), case.images.device, seconds, least=5)


def run_streamed(root: Path, size: int, views: int, device: torch.device, seconds: float) -> Iterator[Row]:
    """A row for each way to make batches of so many views of the files in `root`, and for the floor."""
    files = len(list((root / "train").rglob("*.jpg")))
    batch = min(STREAMED_BATCH, files // 2)
    print(f"\nstreamed input, {size}×{size} pixels, batch {batch}, views {views}")
    calls = streamed_contenders(root, size, batch, views, device)
    facts = {"part": "streamed input", "batch": batch, "views": views, "image_size": size}
    yield from _input_rows(facts, calls, files // batch, (DECODING, BY_IMAGE), device, seconds, least=3)


def _input_rows(
    facts: Row,
    calls: dict[str, measure.Contender],
    batches: int,
    against: tuple[str, str],
    device: torch.device,
    seconds: float,
    least: int,
) -> Iterator[Row]:
    """A row, with `facts`, for each of `calls`, which makes so many batches, against the floor and a DataLoader."""
    times = measure.interleaved(calls, measure.clock(device), seconds, too_slow=float("inf"), least=least)
    found = {name: measure.quantiles([s / batches for s in values]) for name, values in times.items()}
    floor, loader = against
    for name, quantiles in found.items():
        row = {
            "benchmark": "train",
            "contender": name,
            **facts,
            "dtype": "float32",
            **quantiles,
            "images_per_second": 1e3 * facts["batch"] / quantiles["median_ms"],
            "times_floor": _ratio(name, floor, found),
            "speed_over_loader": _ratio(loader, name, found),
            **measure.conditions(device),
        }
        over_loader = f"{row['speed_over_loader']:.2f} × DataLoader"
        measure.print_row(row, f"{row['images_per_second']:.0f} images/s", over_loader)
        yield row


def _ratio(name: str, other: str, found: dict[str, Row]) -> float:
    return found[name]["median_ms"] / found[other]["median_ms"]


def targets(rows: list[Row]) -> Iterator[str]:
    """What was aimed at, what was found, and whether that is met."""
    plain = {INTRA_CLASS: ("two-view", "times_two_views"), PREVIOUS_EPOCH: ("one-view", "times_one_view")}
    for row in rows:
        name = row["contender"]
        if name in plain:
            views, key = plain[name]
            yield (
                f"{name}: over {views} cross-entropy, {row['network']}, batch {row['batch']}: {row[key]:.3f} "
                f"(at most {MOST_OVER_PLAIN}): {'met' if row[key] <= MOST_OVER_PLAIN else 'missed'}"
            )
        elif name == RESIDENT:
            ratio = row["speed_over_loader"]
            yield (
                f"device-resident over DataLoader, images per second, batch {row['batch']}, views {row['views']}: "
                f"{ratio:.1f} (at least {LEAST_OVER_LOADER:g}): {'met' if ratio >= LEAST_OVER_LOADER else 'missed'}"
            )
        elif name == STREAMED:
            ratio = row["speed_over_loader"]
            yield (
                f"streamed over DataLoader, images per second, {row['image_size']} pixels, views {row['views']}: "
                f"{ratio:.2f} (at least 1): {'met' if ratio >= 1 else 'missed'}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_arguments(parser)
    parser.add_argument("--networks", nargs="+", metavar="NAME", default=NETWORKS, help="teachers (default: three)")
    parser.add_argument("--batch-sizes", nargs="+", type=int, metavar="B", help="images a batch (default: by device)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    networks, sizes = options.networks, options.batch_sizes or BATCH_SIZES[device.type]
    if options.quick:
        networks, sizes = QUICK
    seconds = 0.05 if options.quick else 4.0
    images, labels = make_data(QUICK_IMAGES if options.quick else IMAGES, device)
    rows: list[Row] = []
    for size in sizes:
        for network in networks:
            case = Case(network, size, images, labels)
            rows += run_steps(case, case.network, case.teachers(), seconds)
            rows += run_steps(case, case.student, case.students(), seconds)
        for views in (1, 2):
            rows += run_input(Case("", size, images, labels), views, seconds)
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), *((8, 32) if options.quick else (STREAMED_FILES, STREAMED_SIDE)))
        for side, views in [(16, 2)] if options.quick else itertools.product(STREAMED_SIZES, (1, 2)):
            rows += run_streamed(Path(folder), side, views, device, seconds)
    print("\ntargets", *targets(rows), sep="\n    ")
    save(rows, options)


if __name__ == "__main__":
    main()
