"""A batch larger than the memory: the loss and gradients of the whole of it, networks asked about a part at a time.

Rows may be compared with each other, so the loss of the whole is not the mean of those of its parts. Three passes give
it exactly (gradient caching: Gao et al. 2021, arXiv 2101.06983): what the network says about every part, without
gradient; the losses of all that, with the gradient with respect to it; and every part once more, from which that
gradient goes on to the parameters. The price is a second forward pass, a third of a step's work where a backward pass
takes two forward ones. In memory at a time are what networks say about the whole batch, and the activations of a part.

Batch normalisation sees a part at a time, the same in both passes; running statistics move in the last one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from icckd.data import Batch
from icckd.methods import Outputs
from icckd.training.randomness import random_state, set_random_state
from icckd.training.statistics import unmoved_statistics
from icckd.training.tasks import Task


def accumulate(
    task: Task, batch: Batch, parts: int, precision: Callable[[], AbstractContextManager[object]]
) -> dict[str, Tensor]:
    """The losses of `batch`, by name, without gradient; their gradient is added to that of the parameters of `task`.

    Networks are asked about `parts` parts of it, as even as can be, or fewer where that would leave one image to some
    (of several processes, each splits its own images, into as many), and within `precision()`, as losses are computed.
    Random numbers are those of asking once.
    """
    if parts > 1:
        parts = _possible(batch, parts)
    if parts == 1:
        return _at_once(task, batch, precision)
    pieces = _split(batch, parts)
    states, said, others = [], [], []
    with torch.no_grad(), unmoved_statistics(task), precision():
        for piece in pieces:
            states.append(random_state())
            said.append(task.ask(piece))
    with precision():
        for piece in pieces:
            others.append(task.ask_without_gradient(piece))
    whole = _of_all([_tensors(outputs) for outputs in said], pieces)
    leaves = [tensor.requires_grad_() for tensor in whole]
    by_name = {name: _joined([asked[name] for asked in others], pieces) for name in others[0]}
    with precision():
        losses = task.losses(_like(said[0], leaves), by_name, batch)
    losses["loss"].backward()
    after = random_state()
    gradients = _of_parts([leaf.grad for leaf in leaves], pieces)
    for piece, state, gradient in zip(pieces, states, gradients, strict=True):
        set_random_state(state)
        with _averaging(task, last=piece is pieces[-1]):
            with precision():
                again = _tensors(task.ask(piece))
            pairs = [(x, g) for x, g in zip(again, gradient, strict=True) if g is not None and x.requires_grad]
            torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])
    set_random_state(after)
    return {name: value.detach() for name, value in losses.items()}


def _at_once(task: Task, batch: Batch, precision: Callable[[], AbstractContextManager[object]]) -> dict[str, Tensor]:
    with precision():
        losses = task(batch)
    losses["loss"].backward()
    return {name: value.detach() for name, value in losses.items()}


def _averaging(task: Task, *, last: bool) -> AbstractContextManager[Any]:
    """Several processes average gradients in backward: once, when those of all parts have been added up."""
    return nullcontext() if last or task.replicas is None else task.replicas.without_averaging()


def _possible(batch: Batch, parts: int) -> int:
    """`parts`, or as many as leave two images to each, on every rank: one alone has no variance to normalise by."""
    fewest = len(batch.labels) if batch.whole is None else min(batch.whole.counts)
    return max(1, min(parts, fewest // 2))


def _split(batch: Batch, parts: int) -> list[Batch]:
    views = zip(*(view.tensor_split(parts) for view in batch.views), strict=True)
    rest = zip(batch.labels.tensor_split(parts), batch.indices.tensor_split(parts), strict=True)
    return [Batch(of_part, labels, indices) for of_part, (labels, indices) in zip(views, rest, strict=True)]


def _tensors(outputs: Outputs) -> list[Tensor]:
    return [outputs.features, outputs.logits, *outputs.maps.values()]


def _like(outputs: Outputs, tensors: Sequence[Tensor]) -> Outputs:
    """`tensors` in the places of those of `outputs`."""
    features, logits, *maps = tensors
    return Outputs(features, logits, dict(zip(outputs.maps, maps, strict=True)))


def _joined(outputs: Sequence[Outputs], pieces: Sequence[Batch]) -> Outputs:
    return _like(outputs[0], _of_all([_tensors(each) for each in outputs], pieces))


def _of_all(of_pieces: Sequence[Sequence[Tensor]], pieces: Sequence[Batch]) -> list[Tensor]:
    """Tensors of the whole batch of those of its pieces: rows of the first view of all images, then of the second."""
    views = len(of_pieces[0][0]) // len(pieces[0].labels)
    by_view = [[tensor.chunk(views) for tensor in tensors] for tensors in zip(*of_pieces, strict=True)]
    return [torch.cat([chunks[view] for view in range(views) for chunks in of_all]) for of_all in by_view]


def _of_parts(tensors: Sequence[Tensor | None], pieces: Sequence[Batch]) -> Iterator[list[Tensor | None]]:
    """The other way round: the rows of each piece, from tensors of the whole batch; None stays."""
    count, start = sum(len(piece.labels) for piece in pieces), 0
    for piece in pieces:
        end = start + len(piece.labels)
        yield [None if x is None else torch.cat([view[start:end] for view in x.split(count)]) for x in tensors]
        start = end
