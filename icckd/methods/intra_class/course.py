"""How the weight of the intra-class loss changes in a training."""

from icckd.methods.intra_class.settings import IntraClassSettings


def weight_at(progress: float, settings: IntraClassSettings) -> float:
    """The weight in force when the share `progress` of the epochs is over.

    λ · min(1, progress / weight_warmup) · min(1, (1 − progress) / weight_decline), a share of 0 leaving its factor out:
    this project's choice.
    """
    weight = settings.weight
    if settings.weight_warmup:
        weight *= min(1.0, progress / settings.weight_warmup)
    if settings.weight_decline:
        weight *= min(1.0, (1 - progress) / settings.weight_decline)
    return weight
