"""What a student has kept of how its teacher relates images of one class."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from icckd.experiment.evaluation import Predictions

NEIGHBOURS = 5


def neighbour_agreement(student: Predictions, teacher: Predictions) -> float:
    """How far both networks find the same images of a class nearest to each other: 1 always, 0 as by chance.

    For each of the N images that has more than 5 others in its class, the share of the 5 nearest of these, by the
    cosine of the student's features, that are among the 5 nearest by the teacher's; the mean of that, less the mean of
    what chance gives, 5 / others, over what that leaves (this project's choice). nan where there is no such image, or
    features are not finite. In float64; O(Σ n²) work over classes of n images, and memory of the largest.
    """
    common = expected = count = 0.0
    if not (student.features.isfinite().all() and teacher.features.isfinite().all()):
        return torch.nan
    for label in student.labels.unique():
        of = student.labels == label
        others = int(of.sum()) - 1
        if others <= NEIGHBOURS:
            continue
        ours, theirs = _nearest(student.features[of]), _nearest(teacher.features[of])
        common += (ours & theirs).sum().item() / NEIGHBOURS
        expected += len(ours) * NEIGHBOURS / others
        count += len(ours)
    return (common - expected) / (count - expected) if count else torch.nan


def _nearest(features: Tensor) -> Tensor:
    """Which rows are nearest to each of (n, F), bool (n, n); of equally near ones some."""
    unit = normalize(features.double(), dim=1)
    cosines = unit @ unit.T
    cosines.fill_diagonal_(-torch.inf)
    places = cosines.topk(NEIGHBOURS, dim=1).indices
    return torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, places, True)
