"""The supervised contrastive loss, on the kernels of the intra-class loss.

Its denominator is that of the intra-class loss with one class for all rows. Let every row's positive be its own
opposite, −z_i. With κ = 1/temperature and n_i = |z_i|², which is 1, or 0 of a zero row, that loss is

    e_i = log( exp(−κ n_i) + Σ_{a≠i} exp(κ z_i·z_a) ) + κ n_i
    log Σ_{a≠i} exp(κ z_i·z_a) = e_i − κ n_i + log( 1 − exp(−e_i) )

where exp(−e_i) is at most 1/2, as no similarity is below −n_i: nothing cancels. The opposite, a constant, pulls the
gradient along z_i only, which normalisation takes out. The numerator is the row's product with the sum of its class.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from icckd.backends.arithmetic import accumulation_dtype
from icckd.compiling import disable
from icckd.functional import checks
from icckd.functional.intra_class import intra_class_contrastive
from icckd.functional.sides import unit
from icckd.ops.values import labels_below

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks

_REDUCTIONS = ("mean", "sum", "none")
# So many rows a GPU adds one after the other.
_IN_A_ROW = 32


def supervised_contrastive(
    features: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    reduction: str = "mean",
    num_classes: int | None = None,
    group: "ProcessGroup | Ranks | None" = None,
    backend: str = "auto",
) -> Tensor:
    """Contrast the rows of every anchor's label with all other rows (Khosla et al. 2020, arXiv 2004.11362, its L_out).

    With z the rows divided by their Euclidean norm (a zero row stays zero and has no gradient), κ = 1/temperature, A_i
    the other rows and P_i those of them that bear the label of i,

        ℓ_i = log Σ_{a∈A_i} exp(κ z_i·z_a) − κ/|P_i| Σ_{p∈P_i} z_i·z_p
        "none": ℓ (N,)    "sum": Σ ℓ_i    "mean": over the rows that have a P_i, and 0 without any

    A row without P_i is no anchor, and its ℓ_i is 0. Gradients flow to `features` and to a `temperature` tensor, in
    reverse mode, once: a second derivative raises RuntimeError. The work is N², the memory used O(N·D).

    Args:
        features: (N, D) float; in the paper two views of every image.
        labels: (N,) integers. A row with a negative label is ignored: it is no anchor and nobody's negative.
        temperature: τ > 0, a float or a 0-dim float tensor.
        reduction: "mean", "sum" or "none".
        num_classes: A promise that every label is below it, so that labels need not be sorted. On a GPU, where checking
            would synchronise, rows that break it are ignored.
        group: Process group whose ranks all call this at the same time, each with its own rows, any number of them, or
            an `icckd.exchange.Ranks`, which knows how many without asking: A_i and P_i are then of all ranks' rows,
            which are gathered on every rank. "sum" and "none" cover the rank's own anchors; the mean over the ranks of
            "mean" is the loss of all ranks' rows together, and so are the gradients after averaging. Not within a
            transform of torch.func or in forward mode: RuntimeError.
        backend: Who computes: "auto", "reference", "cpu", "cuda" or "triton".

    Returns:
        A scalar, or (N,) for "none"; float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: An argument has a wrong type, shape, device or value. Values are looked at on the CPU
            only, where nothing compiles or maps the call.
        BackendUnavailable: The backend asked for cannot run here.
    """
    _check(features, labels, temperature, num_classes)
    checks.one_of("reduction", reduction, _REDUCTIONS)
    labels = labels.long()
    if group is not None:
        return _of_ranks(group, features, labels, temperature, reduction, num_classes, backend)
    labels_below("labels", labels, num_classes)
    rows, has_positives = _rows(features, labels, None, temperature, num_classes, backend)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.sum() / has_positives.sum().clamp(min=1)


@disable
def _of_ranks(
    group: "ProcessGroup | Ranks",
    features: Tensor,
    labels: Tensor,
    temperature: float | Tensor,
    reduction: str,
    num_classes: int | None,
    backend: str,
) -> Tensor:
    """The loss of this rank's anchors among all ranks' rows."""
    # Not every build of PyTorch has torch.distributed.
    from icckd.exchange import line_up

    differentiated = [temperature] if isinstance(temperature, Tensor) else []
    ranks = line_up(group, {"features": features}, *differentiated, labels=labels, num_classes=num_classes)
    own = ranks.place(torch.ones_like(labels, dtype=torch.bool))
    features, labels = ranks.gather_with_gradient(features), ranks.gather(labels)
    rows, has_positives = _rows(features, labels, own, temperature, num_classes, backend)
    if reduction == "none":
        return rows[ranks.own]
    return rows.sum() if reduction == "sum" else rows.sum() * ranks.size / has_positives.sum().clamp(min=1)


def _rows(
    features: Tensor,
    labels: Tensor,
    own: Tensor | None,
    temperature: float | Tensor,
    num_classes: int | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The loss of every row (N,), and which rows have positives (N,).

    own: Which rows may be anchors (N,): the loss of the others is 0. None: all.
    """
    used = labels >= 0 if num_classes is None else (labels >= 0) & (labels < num_classes)
    place, places = _places(labels, used, num_classes)
    size = labels.new_zeros(places).index_add(0, place, used.long())[place]
    has_positives = used & (size > 1)
    is_anchor = has_positives if own is None else has_positives & own
    excess = intra_class_contrastive(
        features,
        -features.detach(),
        torch.where(used, 0, -1),
        gate=is_anchor,
        temperature=temperature,
        reduction="none",
        num_classes=1,
        backend=backend,
    )
    # Of others it is 0, of which exp(−e) would be 1.
    excess = torch.where(is_anchor, excess, 1)
    z = unit(features.to(accumulation_dtype(features)).masked_fill(~used[:, None], 0))
    squared = z.detach().square().sum(1)
    attraction = ((z * _SumOfClass.apply(z, place, places)).sum(1) - squared) / (size - 1).clamp(min=1)
    loss = excess + torch.log1p(-torch.exp(-excess)) - (squared + attraction) / temperature
    return torch.where(is_anchor, loss, 0), has_positives


def _places(labels: Tensor, used: Tensor, num_classes: int | None) -> tuple[Tensor, int]:
    """A number for every row's class (N,), and what all of them are below: O(N). Rows that are not used share one."""
    count = labels.shape[0]
    if num_classes is not None and num_classes <= count:
        return torch.where(used, labels, num_classes), num_classes + 1
    ordered, order = torch.where(used, labels, -1).sort()
    begins = ordered != ordered.roll(1)
    return torch.empty_like(order).scatter(0, order, begins.cumsum(0)), count + 1


class _SumOfClass(torch.autograd.Function):
    """Of every row the sum of the rows (N, D) of its class, itself included: its own derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, place: Tensor, places: int) -> Tensor:
        return (_in_order if rows.is_cuda else _added)(rows, place, places)[place]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, place, ctx.places = inputs
        ctx.save_for_backward(place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return _SumOfClass.apply(gradient, place, ctx.places), None, None


def _added(rows: Tensor, place: Tensor, places: int) -> Tensor:
    """The sums (places, D) of the rows of every place."""
    return rows.new_zeros((places, rows.shape[1])).index_add(0, place, rows)


def _in_order(rows: Tensor, place: Tensor, places: int) -> Tensor:
    """The same on a GPU, where index_add adds in any order: the same bits every time.

    index_put sorts, and adds the rows of a place one after the other: classes are divided, so that those are few.
    """
    parts = max(1, rows.shape[0] // (places * _IN_A_ROW))
    part = torch.arange(rows.shape[0], device=rows.device) % parts
    sums = rows.new_zeros((places * parts, rows.shape[1]))
    return sums.index_put((place * parts + part,), rows, accumulate=True).unflatten(0, (places, parts)).sum(1)


def _check(features: Tensor, labels: Tensor, temperature: float | Tensor, num_classes: int | None) -> None:
    checks.float_matrix("features", features)
    checks.integer_vector("labels", labels, features.shape[0])
    checks.same_device("labels", labels, "features", features)
    checks.temperature("temperature", temperature, features.device)
    if num_classes is not None:
        checks.positive_integer("num_classes", num_classes)
