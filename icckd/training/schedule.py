"""The learning rate as a function of the step, with no state to save."""

import math

from icckd.settings import TrainingSettings

# The batch that a learning rate is given for, and the power of the batch's size beside it that multiplies the rate:
# linear by Goyal et al. 2017 (arXiv 1706.02677), the square root by You et al. 2020 (arXiv 1904.00962).
_BATCH_OF_RATE = 256
_POWERS = {"none": 0.0, "linear": 1.0, "square-root": 0.5}


def peak_rate(settings: TrainingSettings) -> float:
    """The largest learning rate, after the warm-up: `learning_rate` as scaled for the batch."""
    return settings.learning_rate * (settings.batch_size / _BATCH_OF_RATE) ** _POWERS[settings.rate_scaling]


def learning_rate(settings: TrainingSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of training step `step` (0-based, over the whole training).

    Linear warm-up, then a cosine to zero (Loshchilov & Hutter 2017) or a fall by `decay` at each milestone.
    """
    peak = peak_rate(settings)
    warmup = settings.warmup_epochs * steps_per_epoch
    total = settings.epochs * steps_per_epoch
    if step < warmup:
        return peak * (step + 1) / (math.ceil(warmup) + 1)
    if settings.schedule == "cosine":
        progress = (step - warmup) / max(total - warmup, 1)
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    passed = sum(step >= milestone * total for milestone in settings.milestones)
    return peak * settings.decay**passed
