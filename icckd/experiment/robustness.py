"""What a network still says rightly about test images that an attack on it has changed."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from icckd.attacks import fgsm, pgd
from icckd.data import Batch
from icckd.distributed import ALONE, World
from icckd.experiment.evaluation import Predictions, accuracy_by_class, predict, spread
from icckd.models import Model
from icckd.settings import EvaluationSettings
from icckd.training.tasks.frozen import ask_as_it_is


class Attack:
    """The attack that `settings` name, on the cross-entropy with the true labels of images of these statistics.

    PGD starts anywhere in the ball, uniformly. Its random numbers come from `seed` in the order of the images: they
    depend neither on how these are cut into batches nor on how many processes there are.
    """

    def __init__(self, settings: EvaluationSettings, mean: Sequence[float], std: Sequence[float], seed: int):
        self.settings = settings
        self.mean, self.std = mean, std
        self.seed = seed

    def predict(self, model: Model, batches: Iterable[Batch], world: World = ALONE) -> Predictions:
        """What `model` says about the images of `batches`, in order, each moved so that it errs.

        Of several processes each attacks its parts of the batches; the first gets all predictions.
        """
        return predict(model, self._moved(model, batches, world), world)

    def _moved(self, model: Model, batches: Iterable[Batch], world: World) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(self.seed)
        for batch in batches:
            counts = (len(batch.labels),) if batch.whole is None else batch.whole.counts
            start = self._start(sum(counts), batch.views[0], random).split(counts)[world.rank]
            yield batch._replace(views=(self._on(model, batch, start),))

    def _start(self, count: int, images: Tensor, random: torch.Generator) -> Tensor:
        """Where to begin with `count` images like these, less the images, in units of pixels."""
        epsilon = self.settings.epsilon
        start = torch.empty(count, *images.shape[1:]).uniform_(-epsilon, epsilon, generator=random)
        return start.to(images.device)

    def _on(self, model: Model, batch: Batch, start: Tensor) -> Tensor:
        def loss(images: Tensor) -> Tensor:
            return cross_entropy(ask_as_it_is(model, images).logits.float(), batch.labels, reduction="sum")

        images, settings = batch.views[0], self.settings
        if settings.attack == "fgsm":
            return fgsm(loss, images, epsilon=settings.epsilon, mean=self.mean, std=self.std)
        return pgd(
            loss,
            images,
            start,
            epsilon=settings.epsilon,
            step_size=settings.step_size,
            steps=settings.steps,
            mean=self.mean,
            std=self.std,
        )


def measure_robustness(predictions: Predictions) -> dict[str, float | list[float]]:
    """The measures of a network by what it says about attacked test images, in float64.

    - robust_accuracy: the fraction whose largest logit is the true class's; an answer that is not finite is wrong.
    - worst_class_robust_accuracy: the lowest such accuracy of a class that has images.
    - robust_accuracy_spread: the standard deviation of the classes' over their mean; nan where that is 0.
    - per_class_robust_accuracy: of each class, in class order; nan for a class without images.
    """
    logits, labels = predictions.logits, predictions.labels
    correct = ((logits.argmax(1) == labels) & logits.isfinite().all(1)).double()
    by_class = accuracy_by_class(correct, labels, logits.shape[1])
    return {
        "robust_accuracy": correct.mean().item(),
        "worst_class_robust_accuracy": by_class[by_class.isfinite()].min().item(),
        "robust_accuracy_spread": spread(by_class),
        "per_class_robust_accuracy": by_class.tolist(),
    }
