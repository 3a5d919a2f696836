"""A run: its stages, its folder, what is measured and shown on the way.

`experiment` goes from data to teacher to student to report; `class_augmentation` chooses crops by class before that.
`requirements` says early what is missing, `rehearsal` what would fail; `networks` makes or reads a network for the
data. `examination` asks a trained one further: `probe` what it knows of finer classes than it was trained on,
`robustness` what an attack leaves of its accuracy; `evaluation` measures its answers, `examples` chooses some to show.
`run_folder` knows which file means what; `progress` tells how far training is, `event_files` TensorBoard.
"""

from icckd.experiment.evaluation import (
    FINE_NUMBERS,
    NUMBERS,
    ROBUST_NUMBERS,
    SWAP_NUMBERS,
    TAUGHT_NUMBERS,
    TRAINING_NUMBERS,
)
from icckd.experiment.experiment import Experiment
from icckd.experiment.run_folder import RunFolder

__all__ = [
    "FINE_NUMBERS",
    "NUMBERS",
    "ROBUST_NUMBERS",
    "SWAP_NUMBERS",
    "TAUGHT_NUMBERS",
    "TRAINING_NUMBERS",
    "Experiment",
    "RunFolder",
]
