"""Checks of arguments' values: made by the operators, so that code that is compiled or mapped makes them too.

Values are looked at only where `readable` says that they are there, and that looking does not wait for a GPU.
Shapes, dtypes and devices are checked by `icckd.functional`.
"""

import torch
from torch import Tensor

_MODE = torch._C._TorchDispatchModeKey
# Of modes that record operations, or find the shapes of their results, without numbers.
_WITHOUT_NUMBERS = (_MODE.FAKE, _MODE.PROXY, _MODE.FUNCTIONAL)


def readable(x: Tensor) -> bool:
    """Whether the values of `x` may be looked at."""
    return x.device.type == "cpu" and has_values(x)


def has_values(x: Tensor) -> bool:
    """Whether `x` holds numbers that code outside of PyTorch's dispatcher can read.

    Not so while a compiler, make_fx or torch.jit traces, in a FakeTensorMode, on the device "meta", within a transform
    of torch.func, and for a subclass that has its own idea of operations.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta or not torch._C._has_storage(x):
        return False
    own_dispatch = type(x).__torch_dispatch__ is not Tensor.__torch_dispatch__
    if own_dispatch or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    if not torch._C._len_torch_dispatch_stack() and not torch._ops._len_torch_dispatch_stack_pre_dispatch():
        return True
    modes = [torch._C._get_dispatch_mode(key) for key in _WITHOUT_NUMBERS]
    modes += [torch._ops._get_dispatch_mode_pre_dispatch(key) for key in _WITHOUT_NUMBERS[1:]]
    return all(mode is None for mode in modes)


def labels_below(name: str, labels: Tensor | None, num_classes: int | None) -> None:
    """Raise ValueError for a label that is not below `num_classes`."""
    if labels is None or num_classes is None or not readable(labels) or labels.numel() == 0:
        return
    highest = int(labels.max())
    if highest >= num_classes:
        raise ValueError(f"{name} reach {highest}; they should be below num_classes = {num_classes}")


def labels_below_classes(name: str, labels: Tensor, classes: int, of: str) -> None:
    """Raise ValueError for a label beyond the classes, of which `of` has so many; negative ones are allowed."""
    if not readable(labels) or labels.numel() == 0:
        return
    highest = int(labels.max())
    if highest >= classes:
        raise ValueError(f"{name} holds {highest}; each should be below {classes}, the classes of {of}, or negative")


def labels_owned(name: str, labels: Tensor, rank: int, ranks: int) -> None:
    """Raise ValueError for a label of a class that is not this rank's, as those that are its number mod `ranks` are."""
    if not readable(labels):
        return
    others = labels[(labels >= 0) & (labels % ranks != rank)]
    if len(others):
        label = int(others[0])
        raise ValueError(
            f"{name} holds {label}, a class that rank {label % ranks} owns, not {rank}: give the group too, or what "
            "icckd.exchange.Ranks has sent here, its `arrived` or what `to_owners` returns"
        )


def labels_name_classes(name: str, labels: Tensor, classes: int) -> None:
    """Raise ValueError for a label that is none of `classes` classes."""
    if not readable(labels) or labels.numel() == 0:
        return
    lowest, highest = map(int, labels.aminmax())
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name} holds {wrong}; each should be in [0, {classes}), the classes of the logits")


def finite_weights(name: str, weight: Tensor | None) -> None:
    """Raise ValueError for weights that are not finite numbers of 0 or more."""
    if weight is None or not readable(weight) or weight.numel() == 0:
        return
    lowest, highest = weight.aminmax()
    if not 0 <= lowest <= highest < torch.inf:
        raise ValueError(f"{name} holds a negative or non-finite value; its weights should be finite and 0 or more")


def indices_below(name: str, index: Tensor, rows: int) -> None:
    """Raise ValueError for an index of no row among `rows`."""
    if not readable(index) or index.numel() == 0:
        return
    lowest, highest = map(int, index.aminmax())
    if not 0 <= lowest <= highest < rows:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name} holds {wrong}; each should be in [0, {rows})")
