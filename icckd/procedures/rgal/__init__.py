"""Distillation without data: a generator makes the images that the student learns from.

`generator` is its network, `statistics` what of a teacher tells real images from others, `synthesis` how it learns,
`pool` where its images are kept and in which batches they come, `task` what a step of the student is, `procedure` the
whole.
"""

from icckd.procedures.rgal.procedure import DataFreeDistillation

__all__ = ["DataFreeDistillation"]
