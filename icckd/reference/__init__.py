"""The definition of every function of `icckd.functional`, in plain, dense PyTorch.

Nothing here is fast or small: the pairwise functions build N × N tensors, `rkd_angle` builds N × N × N. They exist to
be read and to be compared with. They check few arguments, run on any device and in any float dtype (float16 and
bfloat16 are computed in float32, float64 throughout in float64), and ordinary autograd differentiates them as often
as wanted.
"""

from icckd.reference.bank import bank_products
from icckd.reference.center_contrastive import center_contrastive
from icckd.reference.cross_entropy import classification_margin, cross_entropy_with_margin
from icckd.reference.hierarchical_similarity import hierarchical_similarity
from icckd.reference.intra_class import intra_class_contrastive
from icckd.reference.maps import attention_transfer
from icckd.reference.predictions import dist, dkd, kd_kl, nkd, ttm
from icckd.reference.relations import pkt, rkd_angle, rkd_distance, similarity_preserving
from icckd.reference.supervised_contrastive import supervised_contrastive
from icckd.reference.weak_spectral import weak_spectral

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
