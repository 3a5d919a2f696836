"""The intra-class contrastive loss."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from icckd import backends
from icckd.backends.eager.intra_class import anchor_weights
from icckd.functional import checks
from icckd.ops import intra_class as ops
from icckd.ops.transforms import call, differentiable, wants_gradient
from icckd.ops.values import has_values

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks

_REDUCTIONS = ("mean", "sum", "none")


def intra_class_contrastive(
    anchor: Tensor,
    positive: Tensor,
    labels: Tensor,
    *,
    gate: Tensor | None = None,
    memory: Tensor | None = None,
    memory_labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    reduction: str = "mean",
    num_classes: int | None = None,
    group: "ProcessGroup | Ranks | None" = None,
    backend: str = "auto",
) -> Tensor:
    """Contrast every anchor's positive with the other rows of the anchor's own class.

    With z, p, m the rows of anchor, positive and memory divided by their Euclidean norm (as they are without
    `normalize`; a zero row stays zero and has no gradient), κ = 1/temperature, and N_i the rows j ≠ i and the memory
    rows that bear the label of i,

        ℓ_i = −log( exp(κ z_i·p_i) / ( exp(κ z_i·p_i) + Σ_{j∈N_i} exp(κ z_i·z_j or κ z_i·m_j) ) )
        "none": g_i ℓ_i (N,)    "sum": Σ g_i ℓ_i    "mean": Σ g_i ℓ_i / Σ g_i, and 0 where Σ g_i = 0

    The negatives from the anchor's own class, the gate and the memory are those of arXiv 2509.22053; similarity,
    normalisation and temperature are this project's choice. An anchor without negatives has ℓ_i = 0 and no gradient.
    Gradients flow to `anchor` (as an anchor and as others' negative), to `positive` and to a `temperature` tensor, in
    reverse mode and, but for "none", in forward mode, once: a second derivative raises RuntimeError. The work is
    Σ_c n_c², the memory used O(N·D + M·D).

    Args:
        anchor: (N, D) float.
        positive: (N, D), another view of each anchor, of the same dtype.
        labels: (N,) integers. A row with a negative label is ignored.
        gate: (N,) weights g ≥ 0, or booleans (None: all 1). A row of weight 0 is no anchor, but still a negative.
        memory: (M, D) float, further negatives; goes with `memory_labels` (M,), where a negative label marks an
            empty slot.
        temperature: τ > 0, a float or a 0-dim float tensor.
        normalize: Compare directions (cosine similarity) rather than the rows as they are.
        reduction: "mean", "sum" or "none".
        num_classes: A promise that every label is below it, so that classes can be counted instead of sorted. On a GPU,
            where checking would synchronise, rows that break it are ignored.
        group: Process group whose ranks all call this at the same time, each with its own rows, any number of them:
            every rank's rows are negatives for every rank's anchors. "sum" and "none" cover the rank's own anchors;
            the mean over the ranks of "mean" is the loss of all ranks' rows together, and so are the gradients after
            averaging. Each rank's memory serves its own anchors only. The ranks' row counts are read on the host.
            Not within a transform of torch.func or in forward mode: RuntimeError.
        backend: Who computes: "auto", "reference", "cpu", "cuda" or "triton".

    Returns:
        A scalar, or (N,) for "none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value. Values are looked at on the CPU
            only, and that of a temperature tensor only where nothing compiles or maps the call.
        BackendUnavailable: The backend asked for cannot run here.
    """
    _check(anchor, positive, labels, gate, memory, memory_labels, temperature, num_classes)
    checks.one_of("reduction", reduction, _REDUCTIONS)
    backend = backends.select(backend, anchor.device, anchor.dtype, "intra_class")
    dtype = torch.promote_types(anchor.dtype, torch.float32)
    if not isinstance(temperature, Tensor):
        temperature = _known(temperature, dtype, anchor)
    anchor, positive, temperature = differentiable(anchor, positive, temperature.to(dtype))
    weight = None if gate is None else gate.detach().to(dtype)
    batch, own = _Batch(anchor, positive, labels.long(), weight), None
    mean = reduction == "mean"
    if group is not None:
        batch, own = _gathered(batch, temperature, mean, num_classes, group)
        mean = False
    if memory is not None and memory_labels is not None:
        memory, memory_labels = _arithmetic(memory, dtype).detach(), memory_labels.long()
    settings = (mean, normalize, num_classes)
    loss = _rows_or_sum(batch, memory, memory_labels, temperature, settings, reduction != "none", backend)
    return loss if own is None or reduction != "none" else loss[own]


class _Batch(NamedTuple):
    """The rows of a loss (N, D), their labels (N,), and their weights as anchors (N,), 1 each where there are none."""

    anchor: Tensor
    positive: Tensor
    labels: Tensor
    weight: Tensor | None


def _rows_or_sum(
    batch: _Batch,
    memory: Tensor | None,
    memory_labels: Tensor | None,
    temperature: Tensor,
    settings: tuple[bool, bool, int | None],
    add_up: bool,
    backend: str,
) -> Tensor:
    """The weighted losses (N,), or their sum, by the operator that does no more than is wanted.

    settings: The operators' `mean`, `normalize` and `num_classes`.
    """
    differentiated = (batch.anchor, batch.positive, temperature)
    needs = [wants_gradient(x) for x in differentiated]
    # A float16 gradient of a mean could underflow before a loss scale is applied: it is computed in backward, scaled.
    if add_up and any(needs) and batch.anchor.dtype != torch.float16:
        loss, *_ = call(ops.intra_class_sum, *batch, memory, memory_labels, temperature, *settings, *needs, backend)
        return loss
    if any(needs) and memory is not None:
        # Backward reads the memory again, when newer rows may have been pushed into it.
        memory = memory.clone()
    rows, _ = call(ops.intra_class_rows, *batch, memory, memory_labels, temperature, *settings, backend)
    return rows.sum() if add_up else rows


def _gathered(
    batch: _Batch, temperature: Tensor, mean: bool, num_classes: int | None, group: "ProcessGroup | Ranks"
) -> tuple[_Batch, slice]:
    """All ranks' rows, of which others' are no anchors, and where this rank's own are.

    mean: Divide the weights by the ranks' mean total weight.
    """
    # Not every build of PyTorch has torch.distributed.
    from icckd.exchange import line_up

    ranks = line_up(group, {"anchor": batch.anchor}, batch.positive, temperature)
    weight = anchor_weights(batch.labels, batch.weight, num_classes, temperature.dtype)
    if mean:
        total = ranks.mean(weight.sum())
        weight = weight / torch.where(total > 0, total, 1)
    together = _Batch(
        ranks.gather_with_gradient(batch.anchor),
        ranks.place(batch.positive),
        ranks.gather(batch.labels),
        ranks.place(weight),
    )
    return together, ranks.own


def _known(temperature: float, dtype: torch.dtype, anchor: Tensor) -> Tensor:
    """The temperature where backends take it from the host; a tensor like the anchor where that has no numbers."""
    if has_values(anchor):
        return torch.tensor(temperature, dtype=dtype)
    return anchor.new_full((), temperature, dtype=dtype)


def _arithmetic(memory: Tensor, dtype: torch.dtype) -> Tensor:
    """The memory in a dtype that kernels of this arithmetic read: half precision too unless it is double."""
    return memory.to(dtype) if torch.float64 in (dtype, memory.dtype) else memory


def _check(
    anchor: Tensor,
    positive: Tensor,
    labels: Tensor,
    gate: Tensor | None,
    memory: Tensor | None,
    memory_labels: Tensor | None,
    temperature: float | Tensor,
    num_classes: int | None,
) -> None:
    checks.float_matrix("anchor", anchor)
    rows, dim = anchor.shape
    checks.float_matrix("positive", positive, rows, dim)
    checks.same_dtype("positive", positive, "anchor", anchor)
    checks.integer_vector("labels", labels, rows)
    companions = {"positive": positive, "labels": labels}
    if gate is not None:
        checks.weights("gate", gate, rows)
        companions["gate"] = gate
    if (memory is None) != (memory_labels is None):
        given, missing = ("memory", "memory_labels") if memory_labels is None else ("memory_labels", "memory")
        raise ValueError(f"{missing} is None, but {given} is given; they should be given together")
    if memory is not None and memory_labels is not None:
        checks.float_matrix("memory", memory, columns=dim)
        checks.integer_vector("memory_labels", memory_labels, memory.shape[0])
        companions |= {"memory": memory, "memory_labels": memory_labels}
    for name, tensor in companions.items():
        checks.same_device(name, tensor, "anchor", anchor)
    checks.temperature("temperature", temperature, anchor.device)
    if num_classes is not None:
        checks.positive_integer("num_classes", num_classes)
