"""The learning rate as a function of the step, with no state to save."""

import math

from icckd.settings import TrainingSettings


def learning_rate(settings: TrainingSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of training step `step` (0-based, over the whole training).

    Linear warm-up, then a cosine to zero (Loshchilov & Hutter 2017) or a fall by `decay` at each milestone.
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    total = settings.epochs * steps_per_epoch
    if step < warmup:
        return settings.learning_rate * (step + 1) / (math.ceil(warmup) + 1)
    if settings.schedule == "cosine":
        progress = (step - warmup) / max(total - warmup, 1)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    passed = sum(step >= milestone * total for milestone in settings.milestones)
    return settings.learning_rate * settings.decay**passed
