"""Windows of signals, as they are read or made."""

from typing import NamedTuple

import numpy as np


class Windows(NamedTuple):
    """N windows of the signals of sensors, each of a person at an activity.

    signals: float32 (N, channels, length), finite.
    activity: Indices into `activities`, int64 (N,).
    person: Indices into `people`, int64 (N,).
    activities: Names, sorted.
    people: Likewise.
    source: What errors call them.
    """

    signals: np.ndarray
    activity: np.ndarray
    person: np.ndarray
    activities: tuple[str, ...]
    people: tuple[str, ...]
    source: str
