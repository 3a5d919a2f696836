"""The public functions. Each states its mathematics, checks its arguments and leaves the work to a backend.

`icckd.reference` defines the same functions in plain PyTorch.
"""

import icckd.ops.flops  # noqa: F401  (FlopCounterMode then knows the operators)
from icckd.functional.bank import bank_products
from icckd.functional.cross_entropy import classification_margin, cross_entropy_with_margin
from icckd.functional.distillation import kd_kl, rkd_angle, rkd_distance
from icckd.functional.intra_class import intra_class_contrastive

__all__ = [
    "bank_products",
    "classification_margin",
    "cross_entropy_with_margin",
    "intra_class_contrastive",
    "kd_kl",
    "rkd_angle",
    "rkd_distance",
]
