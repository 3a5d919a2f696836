"""The operator of the class memory: what it promises to the compiler."""

from torch import Tensor
from torch.library import custom_op

from icckd import backends
from icckd.ops.values import labels_below


@custom_op("icckd::class_memory_push", mutates_args=("slots", "pushed"))
def class_memory_push(slots: Tensor, pushed: Tensor, features: Tensor, labels: Tensor, backend: str) -> None:
    """Store rows, in order, as the newest of their classes.

    Class c's ring is slots c · K … c · K + K − 1; its n-th row ever, from 0, goes to slot c · K + n mod K, and of more
    than K rows of a class only the last K are written.

    Args:
        slots: (C · K + 1, D) float, or for the reference backend uint8; the last row is 0 and stays so.
        pushed: (C,) int64, the rows of each class ever pushed.
        features: (N, D), converted to the dtype of `slots`.
        labels: (N,) int64; rows with a negative label are skipped, on a GPU those with a label of C or more too, and
            everywhere rows that are not finite in the dtype of `slots`.
    """
    labels_below("labels", labels, len(pushed))
    backends.module(backend).class_memory_push(slots, pushed, features, labels)


@class_memory_push.register_fake
def _(slots: Tensor, pushed: Tensor, features: Tensor, labels: Tensor, backend: str) -> None:
    return None
