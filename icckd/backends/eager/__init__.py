"""The reference backend: class-sorted and chunked PyTorch, on any device, float16 to float64."""

from icckd.backends.eager.bank import bank_products, bank_sums
from icckd.backends.eager.class_memory import class_memory_push
from icckd.backends.eager.cross_entropy import (
    cross_entropy_margin_rows,
    cross_entropy_margin_rows_backward,
    cross_entropy_margin_sum,
)
from icckd.backends.eager.distillation import (
    kd_kl_rows,
    kd_kl_rows_backward,
    kd_kl_sum,
    rkd_angle,
    rkd_distance,
    transformed_teacher_rows,
    transformed_teacher_rows_backward,
)
from icckd.backends.eager.hierarchical import hierarchical_classes, hierarchical_sum
from icckd.backends.eager.intra_class import (
    intra_class_rows,
    intra_class_rows_backward,
    intra_class_sum,
)
from icckd.backends.eager.rest_divergence import rest_divergence_rows, rest_divergence_rows_backward
from icckd.backends.eager.saved_gradient import scale_gradients

__all__ = [
    "bank_products",
    "bank_sums",
    "class_memory_push",
    "cross_entropy_margin_rows",
    "cross_entropy_margin_rows_backward",
    "cross_entropy_margin_sum",
    "hierarchical_classes",
    "hierarchical_sum",
    "intra_class_rows",
    "intra_class_rows_backward",
    "intra_class_sum",
    "kd_kl_rows",
    "kd_kl_rows_backward",
    "kd_kl_sum",
    "rest_divergence_rows",
    "rest_divergence_rows_backward",
    "rkd_angle",
    "rkd_distance",
    "scale_gradients",
    "transformed_teacher_rows",
    "transformed_teacher_rows_backward",
]
