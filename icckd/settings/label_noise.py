"""What data.label_noise says, in its parts."""

from typing import NamedTuple

from icckd.errors import UserError

_KINDS = ("symmetric", "partial")


class LabelNoise(NamedTuple):
    """kind: "symmetric" or "partial"; amount: of it, in [0, 1)."""

    kind: str
    amount: float


def label_noise_of(text: str) -> LabelNoise:
    """The label noise that "symmetric:P" or "partial:Q" names. Raises UserError where `text` is nothing of the kind."""
    kind, _, number = text.partition(":")
    try:
        amount = float(number)
    except ValueError:
        amount = -1.0
    if kind not in _KINDS or not 0 <= amount < 1:
        raise UserError(
            f"data.label_noise is {text!r}; it should be null, symmetric:P or partial:Q, with P or Q in [0, 1)"
        )
    return LabelNoise(kind, amount)
