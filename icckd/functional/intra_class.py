"""The intra-class contrastive loss."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from icckd import backends
from icckd.backends.eager.intra_class import anchor_weights
from icckd.compiling import disable
from icckd.functional import checks
from icckd.ops import intra_class as ops
from icckd.ops.saved_gradient import scaled_once
from icckd.ops.transforms import call, differentiable, wants_gradient
from icckd.ops.values import finite_weights, has_values

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks
    from icckd.exchange.owners import Plan

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
            averaging. Rows travel to the rank that owns their class, c mod ranks, and gradients back, which "mean" has
            under way when it returns; rows of classes that hold much of all ranks' rows are gathered on every rank.
            With a plain group row counts and labels are read on the host; with an `icckd.exchange.Ranks` that knows
            them nothing is. Each rank's memory serves its own anchors only, and all rows are gathered, unless the
            strategy of a `Ranks` is "owner": the memory is then of the classes that the rank owns, and serves all
            ranks' anchors. Not within a transform of torch.func or in forward mode: RuntimeError.
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
    batch = _Batch(anchor, positive, labels.long(), weight)
    if memory is not None and memory_labels is not None:
        memory, memory_labels = _arithmetic(memory, dtype).detach(), memory_labels.long()
    if group is not None:
        return _of_ranks(group, batch, memory, memory_labels, temperature, normalize, reduction, num_classes, backend)
    settings = (reduction == "mean", normalize, num_classes)
    return _rows_or_sum(batch, memory, memory_labels, temperature, settings, reduction != "none", backend)


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


@disable
def _of_ranks(
    group: "ProcessGroup | Ranks",
    batch: _Batch,
    memory: Tensor | None,
    memory_labels: Tensor | None,
    temperature: Tensor,
    normalize: bool,
    reduction: str,
    num_classes: int | None,
    backend: str,
) -> Tensor:
    """The loss where the rows of a class are spread over ranks."""
    # Not every build of PyTorch has torch.distributed.
    from icckd.exchange import line_up

    values = {"anchor": batch.anchor, "positive": batch.positive}
    finite_weights("gate", batch.weight)
    ranks = line_up(group, values, temperature, labels=batch.labels, num_classes=num_classes)
    weight = anchor_weights(batch.labels, batch.weight, num_classes, temperature.dtype)
    plan = ranks.plan(batch.labels, "gather" if memory is not None and ranks.strategy != "owner" else ranks.strategy)
    need_positive = ranks.wants_gradient(1, batch.positive)
    settings = (False, normalize, num_classes)
    # As in one process float16 goes by rows.
    if reduction == "mean" and torch.is_grad_enabled() and batch.anchor.dtype != torch.float16:
        # This rank has a part in backward even if its own rows need no gradient.
        anchor = batch.anchor if batch.anchor.requires_grad else batch.anchor.detach().requires_grad_()
        inputs = (anchor, batch.positive, batch.labels, weight, memory, memory_labels, temperature)
        loss = _MeanOfRanks.apply(ranks, plan, need_positive, settings, backend, *inputs)
        # Backward comes to it after all that does not depend on it: what it waits for has had the time meanwhile.
        loss.grad_fn._set_sequence_nr(0)
        return loss
    if reduction == "mean":
        total = ranks.mean(weight.sum())
        weight = weight / torch.where(total > 0, total, 1)
    held = plan.there(batch.anchor, batch.positive, batch.labels, weight, need_positive)
    ranks.keep_arrived(plan, held)
    rows = _rows_or_sum(_Batch(*held), memory, memory_labels, temperature, settings, False, backend)
    if reduction == "mean":
        return rows.sum()
    rows = plan.home(rows)
    return rows.sum() if reduction == "sum" else rows


class _MeanOfRanks(torch.autograd.Function):
    """The mean's part that this rank computes, with gradients that are on their way home when it returns."""

    @staticmethod
    def forward(
        ctx: Any,
        ranks: "Ranks",
        plan: "Plan",
        need_positive: bool,
        settings: tuple[bool, bool, int | None],
        backend: str,
        anchor: Tensor,
        positive: Tensor,
        labels: Tensor,
        weight: Tensor,
        memory: Tensor | None,
        memory_labels: Tensor | None,
        temperature: Tensor,
    ) -> Tensor:
        total = ranks.mean(weight.sum())
        held = plan.there(anchor, positive, labels, weight, need_positive)
        ranks.keep_arrived(plan, held)
        needs = (True, need_positive, temperature.requires_grad)
        loss, d_anchor, d_positive, d_temperature = ops.intra_class_sum(
            *held, memory, memory_labels, temperature, *settings, *needs, backend
        )
        ctx.gradients = plan.send_back(d_anchor, d_positive if need_positive else None)
        ctx.need_positive, ctx.backend = need_positive, backend
        factor = 1 / torch.where(total > 0, total, 1)
        loss = loss * factor
        ctx.save_for_backward(loss, factor, *([d_temperature] if temperature.requires_grad else []))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        loss, factor, *d_temperature = ctx.saved_tensors
        wanted = [*ctx.gradients.wait(), *d_temperature]
        scaled = iter(scaled_once(wanted, grad_loss * factor, loss, ctx.backend))
        d_anchor = next(scaled)
        d_positive = next(scaled) if ctx.need_positive else None
        return *[None] * 5, d_anchor, d_positive, *[None] * 4, next(scaled, None)


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
