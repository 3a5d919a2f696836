"""What is found out about a network once it is trained, beyond what its predictions say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from icckd.data import Batches, ImageData, plain_batches
from icckd.data.image_data import Split, part_of
from icckd.distributed import World
from icckd.experiment.evaluation import Predictions, predict
from icckd.experiment.networks import Trained
from icckd.experiment.probe import FineProbe
from icckd.experiment.requirements import is_data_free
from icckd.experiment.robustness import Attack
from icckd.methods import EvaluationSet, Outputs
from icckd.settings import Settings
from icckd.training.tasks.frozen import ask_as_it_is


@dataclass(frozen=True)
class Examination:
    """Asks networks about the images of a run, as they are or attacked, by the processes of `world` together."""

    settings: Settings
    data: ImageData
    device: torch.device
    world: World

    def test_batches(self, mean: Sequence[float], std: Sequence[float]) -> Batches:
        """All test images: a part of each batch for every process."""
        data, part = self.data, (self.world.rank, self.world.size)
        return plain_batches(data.test_images, data.test_labels, mean, std, self.device, part)

    def test_set(self, trained: Trained) -> EvaluationSet:
        """The test images as `trained`, which a process asks alone, sees them."""
        data, model, description = self.data, trained.model.to(self.device), trained.description
        batches = plain_batches(data.test_images, data.test_labels, description.mean, description.std, self.device)

        def answer(images: Tensor) -> Outputs:
            with torch.no_grad():
                return ask_as_it_is(model, images)

        people = None if data.people is None else data.people.test
        return EvaluationSet((batch.views[0] for batch in batches), data.test_labels, answer, people)

    def training_sample(self, stage: str, mean: Sequence[float], std: Sequence[float]) -> Batches | None:
        """So many training images as evaluation.training_images says, as they are; None: none are wanted or to be seen.

        The same ones whatever the seed, of each class its share, at least one.
        """
        data, wanted, part = self.data, self.settings.evaluation.training_images, (self.world.rank, self.world.size)
        if not wanted or not len(data.train_labels) or is_data_free(stage, self.settings):
            return None
        every = Split(data.train_images, data.train_labels, data.name)
        chosen = part_of(every, min(wanted / len(data.train_labels), 1.0))
        return plain_batches(chosen.images, chosen.labels, mean, std, self.device, part)

    def training_answers(self, stage: str, trained: Trained) -> Predictions | None:
        """What `trained` says about those."""
        sample = self.training_sample(stage, trained.description.mean, trained.description.std)
        return None if sample is None else predict(trained.model.to(self.device), sample, self.world)

    def attacked(self, trained: Trained) -> Predictions | None:
        """What `trained` says about the test images once they are attacked, if that is wanted."""
        settings, description = self.settings.evaluation, trained.description
        if settings.attack is None:
            return None
        attack = Attack(settings, description.mean, description.std, self.settings.seed)
        batches = self.test_batches(description.mean, description.std)
        return attack.predict(trained.model.to(self.device), batches, self.world)

    def fine_probe(self, stage: str, trained: Trained) -> FineProbe | None:
        """Where networks are trained on coarse classes, a probe of what `trained` says about the training images.

        None where it is not to see them.
        """
        fine = self.data.fine_labels
        if fine is None or not len(fine.train) or is_data_free(stage, self.settings):
            return None
        description, part = trained.description, (self.world.rank, self.world.size)
        batches = plain_batches(
            self.data.train_images, fine.train, description.mean, description.std, self.device, part
        )
        return FineProbe(fine).fit(trained.model.to(self.device), batches, self.world)


def data_in_force(settings: Settings, data: ImageData, stages: Sequence[str]) -> dict[str, Any]:
    """What the settings of the data came to where `stages` are trained: those that were null too."""
    in_force: dict[str, Any] = {
        "train_images": len(data.train_images),
        "test_images": len(data.test_images),
        "mean": list(data.mean),
        "std": list(data.std),
        "augmentation": data.augmentation._asdict(),
    }
    if "teacher" in stages and settings.teacher.loss.strong_views():
        in_force["strong_augmentation"] = data.strong_augmentation._asdict()
    if data.people is not None:
        in_force["people"] = data.people.by_split()
    if data.fine_labels is not None:
        in_force["fine_classes"] = len(data.fine_labels.coarse_of)
    if settings.data.label_noise is not None and len(data.train_labels):
        in_force["label_noise"] = {"wrong": data.wrong_labels}
    if data.candidates is not None:
        in_force["label_noise"]["mean_candidates"] = data.candidates.sum(1).double().mean().item()
    return in_force
