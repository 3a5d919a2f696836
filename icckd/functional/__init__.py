"""The public functions. Each states its mathematics, checks its arguments and leaves the work to a backend.

`icckd.reference` defines the same functions in plain PyTorch.
"""

import icckd.ops.flops  # noqa: F401  (FlopCounterMode then knows the operators)
from icckd.functional.bank import bank_products
from icckd.functional.center_contrastive import center_contrastive
from icckd.functional.cross_entropy import classification_margin, cross_entropy_with_margin
from icckd.functional.hierarchical_similarity import hierarchical_similarity
from icckd.functional.intra_class import intra_class_contrastive
from icckd.functional.maps import attention_transfer
from icckd.functional.predictions import dist, dkd, kd_kl, nkd, ttm
from icckd.functional.relations import pkt, rkd_angle, rkd_distance, similarity_preserving
from icckd.functional.supervised_contrastive import supervised_contrastive
from icckd.functional.weak_spectral import weak_spectral

__all__ = [
    "attention_transfer",
    "bank_products",
    "center_contrastive",
    "classification_margin",
    "cross_entropy_with_margin",
    "dist",
    "dkd",
    "hierarchical_similarity",
    "intra_class_contrastive",
    "kd_kl",
    "nkd",
    "pkt",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "supervised_contrastive",
    "ttm",
    "weak_spectral",
]
