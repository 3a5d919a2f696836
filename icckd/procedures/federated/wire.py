"""Questions and answers as they travel: arrays in NumPy's format, and a few plain values by name.

Nothing is unpickled, and nothing that comes decides how much memory is taken: whoever reads knows from its own settings
which arrays there should be, and of which shapes. Whatever else comes is refused.
"""

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard, get_args

import numpy as np
import torch
from torch import Tensor

from icckd.errors import printable
from icckd.methods.pkd import Group
from icckd.procedures.federated.messages import Answer, Kind, Question, State

Values = dict[str, bool | bytes | float | int | str]
_LOSS = "loss:"
_LOSSES = ("loss", "cross_entropy", "pkd")


class Refused(ValueError):
    """What came is not what it should be; the message says what was wrong."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def question_to_wire(question: Question) -> tuple[list[bytes], Values]:
    """Its arrays, and what else there is."""
    arrays = [_to_wire(x) for state in (question.network, *question.experts) for x in state.values()]
    return arrays, {"kind": question.kind, "round": question.round, "groups": json.dumps(question.groups)}


def question_from_wire(arrays: Sequence[bytes], values: Mapping[str, Any], like: State, classes: int) -> Question:
    """The question, about networks that are `like` another. Raises Refused where it is none."""
    kind, number = _kind(values.get("kind")), values.get("round")
    if not _is_count(number):
        raise Refused(f"the round is {number!r}; it should be a whole number, 0 or more")
    groups = _groups(values.get("groups"), classes)
    if len(groups) > {"train": classes, "confusion": 0, "expert": 1}[kind] or (kind == "expert" and not groups):
        raise Refused(f"there are {len(groups)} groups beside a question of the kind {kind}")
    networks = _networks(arrays, like, 1 + (len(groups) if kind == "train" else 0))
    return Question(kind, number, networks[0], groups, tuple(networks[1:]))


def answer_to_wire(answer: Answer) -> tuple[list[bytes], Values]:
    """Its arrays, and what else there is."""
    tensors = [*(answer.network or {}).values(), *([] if answer.confusion is None else [answer.confusion])]
    counts: Values = {"images": answer.images, "steps": answer.steps, "skipped": answer.skipped}
    return [_to_wire(x) for x in tensors], {**counts, **{_LOSS + name: x for name, x in answer.losses.items()}}


def answer_from_wire(
    arrays: Sequence[bytes], values: Mapping[str, Any], question: Question, images: int, classes: int
) -> Answer:
    """The answer to `question` of a client that has so many `images`. Raises Refused where it is none."""
    steps, skipped, used = (values.get(name) for name in ("steps", "skipped", "images"))
    if not (_is_count(steps) and _is_count(skipped) and skipped <= steps):
        raise Refused(
            f"{skipped!r} steps of {steps!r} were skipped; there should be whole numbers, the first no larger"
        )
    if not _is_count(used) or used > images or (question.kind != "expert" and used != images):
        raise Refused(f"it is made of {used!r} images; the client has {images}")
    losses = {name: values[_LOSS + name] for name in _LOSSES if _LOSS + name in values}
    if not all(isinstance(x, float) and math.isfinite(x) for x in losses.values()):
        raise Refused(f"its losses are {losses}; they should be finite numbers")
    if question.kind == "confusion":
        return Answer(used, confusion=_confusion(arrays, images, classes))
    networks = _networks(arrays, question.network, 1 if used else 0)
    return Answer(used, networks[0] if used else None, losses=losses, steps=steps, skipped=skipped)


def _to_wire(tensor: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, tensor.numpy(), allow_pickle=False)
    return file.getvalue()


def _from_wire(array: bytes, like: Tensor, name: str) -> Tensor:
    wanted = like.numpy()
    file = io.BytesIO(array)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(file)
    except Exception as error:  # Of any kind: the bytes may be anything.
        raise Refused(f"{name} is no array in NumPy's format") from error
    if (shape, dtype) != (wanted.shape, wanted.dtype):
        raise Refused(f"{name} is {dtype} {shape}; it should be {wanted.dtype} {wanted.shape}")
    if len(array) - file.tell() != wanted.nbytes:
        raise Refused(f"{name} has {len(array) - file.tell()} bytes; it should have {wanted.nbytes}")
    flat = np.frombuffer(array, dtype, offset=file.tell()).reshape(shape, order="F" if by_columns else "C")
    tensor = torch.from_numpy(flat.copy())
    if not tensor.isfinite().all():
        raise Refused(f"{name} is not finite")
    return tensor


def _networks(arrays: Sequence[bytes], like: State, number: int) -> list[State]:
    if len(arrays) != number * len(like):
        raise Refused(f"there are {len(arrays)} arrays; there should be {number * len(like)}, of {number} networks")
    each = [arrays[first : first + len(like)] for first in range(0, len(arrays), len(like))]
    return [
        {name: _from_wire(array, x, name) for array, (name, x) in zip(of_one, like.items(), strict=True)}
        for of_one in each
    ]


def _confusion(arrays: Sequence[bytes], images: int, classes: int) -> Tensor:
    if len(arrays) != 1:
        raise Refused(f"there are {len(arrays)} arrays; there should be one, of counts")
    counts = _from_wire(arrays[0], torch.zeros(classes, classes, dtype=torch.int64), "the confusion matrix")
    if (counts < 0).any() or (counts > images).any() or counts.sum() != images:
        raise Refused(f"the confusion matrix does not count {images} images")
    return counts


def _groups(text: Any, classes: int) -> tuple[Group, ...]:
    try:
        groups = tuple(tuple(group) for group in json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused("the groups are not lists of classes") from error
    members = [label for group in groups for label in group]
    apart = _are_counts(members) and len(set(members)) == len(members) and all(x < classes for x in members)
    if not apart or any(len(group) < 2 or list(group) != sorted(group) for group in groups):
        raise Refused("the groups are not lists of two classes or more, rising, none of them in two groups")
    return groups


def _kind(value: Any) -> Kind:
    kinds: dict[Any, Kind] = {kind: kind for kind in get_args(Kind)}
    if not isinstance(value, str) or value not in kinds:
        raise Refused(f"the kind of question is {value!r}; it should be one of {', '.join(kinds)}")
    return kinds[value]


def _are_counts(values: Iterable[Any]) -> bool:
    return all(_is_count(value) for value in values)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
