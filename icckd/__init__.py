"""Intra-class contrastive losses and knowledge distillation for PyTorch, with fused kernels."""

from icckd import functional
from icckd.errors import BackendUnavailable
from icckd.losses import IntraClassContrastiveLoss, TeacherLoss
from icckd.memory import ClassMemory
from icckd.version import __version__

__all__ = [
    "BackendUnavailable",
    "ClassMemory",
    "IntraClassContrastiveLoss",
    "TeacherLoss",
    "__version__",
    "functional",
]
