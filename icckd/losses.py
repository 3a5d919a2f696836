"""Loss modules: the functions of `icckd.functional` with their settings."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from icckd.compiling import disable
from icckd.functional import checks, cross_entropy_with_margin, intra_class_contrastive
from icckd.functional.gate import GATES, most_confident, soft_gate
from icckd.functional.nearest import nearest_of_class
from icckd.memory import ClassMemory

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from icckd.exchange import Ranks

_IGNORED_LABEL = -100


class IntraClassContrastiveLoss(nn.Module):
    """`icckd.functional.intra_class_contrastive` as a module; its documentation says what the arguments mean."""

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
        group: "ProcessGroup | Ranks | None" = None,
    ):
        super().__init__()
        checks.temperature("temperature", temperature)
        checks.one_of("reduction", reduction, ("mean", "sum", "none"))
        self.temperature, self.normalize, self.reduction, self.backend = temperature, normalize, reduction, backend
        self.group = group

    def forward(
        self,
        anchor: Tensor,
        positive: Tensor,
        labels: Tensor,
        gate: Tensor | None = None,
        memory: ClassMemory | None = None,
        group: "ProcessGroup | Ranks | None" = None,
    ) -> Tensor:
        """The loss of anchor and positive (N, D) with labels (N,), a gate (N,) and further negatives.

        `group`, if given, takes the place of the module's own. A memory that is divided among the ranks of a group goes
        with that group.
        """
        memory_rows, memory_labels = _tensors(memory)
        num_classes = None if memory is None else memory.num_classes
        values = {"anchor": anchor, "positive": positive}
        return intra_class_contrastive(
            anchor,
            positive,
            labels,
            gate=gate,
            memory=memory_rows,
            memory_labels=memory_labels,
            temperature=self.temperature,
            normalize=self.normalize,
            reduction=self.reduction,
            num_classes=num_classes,
            group=_line_up(self.group if group is None else group, memory, values, labels, num_classes),
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, normalize={self.normalize}, "
            f"reduction={self.reduction!r}, backend={self.backend!r}"
        )


class TeacherLossOutput(NamedTuple):
    """What `TeacherLoss` returns: 0-dim tensors. Only `total` is meant to be differentiated."""

    total: Tensor
    cross_entropy: Tensor
    intra_class: Tensor
    active_fraction: Tensor
    mean_margin: Tensor


class TeacherLoss(nn.Module):
    """Cross-entropy + weight · intra-class contrastive loss over the samples that are safely classified.

    The teacher's loss of arXiv 2509.22053: samples whose classification margin exceeds `margin` are the anchors. Other
    gates, and further positives, are this project's choice. With k = neighbours the loss of an anchor i is

        ℓ_i = (ℓ(z_i, p_i) + Σ_r ℓ(z_i, p_nn(i, r))) / (1 + k)

    where nn(i, r) is the row of i's class whose positive is r-th nearest to z_i by cosine, i itself excepted: a class
    may then keep clusters rather than points. Where it has fewer others, p_i takes the places that are left. Gradients
    flow to the positives, and not through the choice.

    Args:
        weight: λ ≥ 0. With 0 the intra-class loss is not computed and reported as 0.
        margin: δ, in the units of margin_space.
        margin_space: "probability" or "logit".
        temperature: τ > 0 of the intra-class loss.
        label_smoothing: Of the cross-entropy, in [0, 1].
        backend: Who computes: "auto", "reference", "cpu", "cuda" or "triton".
        group: Process group whose ranks all call this at the same time, each with its own rows, or an
            `icckd.exchange.Ranks`, as of `icckd.functional.intra_class_contrastive`. The means over the ranks of what
            they return are the losses, the active fraction and the mean margin of all ranks' rows together, and so are
            the gradients after averaging, also where ranks have different numbers of labelled rows, or none.
        gate: "margin", as above; "quantile": the `gate_share` of the labelled rows with the largest margins are
            anchors, of all ranks together; "soft": all are, with weights sigmoid((their margin − margin) / gate_width).
        gate_share: In (0, 1].
        gate_width: > 0, in the units of margin_space.
        neighbours: k ≥ 0.

    Raises:
        TypeError, ValueError: A setting has a wrong type or value.
    """

    def __init__(
        self,
        weight: float = 0.02,
        margin: float = 0.2,
        margin_space: str = "probability",
        temperature: float = 0.1,
        label_smoothing: float = 0.0,
        backend: str = "auto",
        group: "ProcessGroup | Ranks | None" = None,
        *,
        gate: str = "margin",
        gate_share: float = 0.5,
        gate_width: float = 0.1,
        neighbours: int = 0,
    ):
        super().__init__()
        checks.number_within("weight", weight, 0, float("inf"))
        checks.is_number("margin", margin)
        checks.one_of("margin_space", margin_space, ("probability", "logit"))
        checks.temperature("temperature", temperature)
        checks.number_within("label_smoothing", label_smoothing, 0, 1)
        checks.one_of("gate", gate, GATES)
        checks.positive_number("gate_share", gate_share)
        checks.number_within("gate_share", gate_share, 0, 1)
        checks.positive_number("gate_width", gate_width)
        checks.non_negative_integer("neighbours", neighbours)
        self.weight, self.margin, self.margin_space = weight, margin, margin_space
        self.temperature, self.label_smoothing, self.backend = temperature, label_smoothing, backend
        self.group = group
        self.gate, self.gate_share, self.gate_width, self.neighbours = gate, gate_share, gate_width, neighbours

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        features: Tensor,
        positive_features: Tensor,
        memory: ClassMemory | None = None,
        *,
        anchors: Tensor | None = None,
        group: "ProcessGroup | Ranks | None" = None,
        weight: float | Tensor | None = None,
    ) -> TeacherLossOutput:
        """The loss and what it is made of.

        Args:
            logits: (N, C) float, of the first view.
            labels: (N,) integers in [0, C), or −100 for rows to ignore.
            features: (N, D) float, of the first view.
            positive_features: (N, D), of the second view. Unread with weight 0.
            memory: Further negatives; it is only read. One that is divided among the ranks of a group goes with that
                group, and makes all rows travel to the owner of their class.
            anchors: (N,) bool, the rows that may be anchors at all (None: all); the others are negatives still.
            group: Takes the place of the module's own, if given.
            weight: A number or a 0-dim tensor that takes the place of the module's own λ in `total`, if given and that
                is above 0. Under torch.compile give a tensor where it changes: each other number is compiled anew.

        Returns:
            total, cross_entropy and intra_class as above; active_fraction, the share of labelled rows that are anchors,
            or their mean weight as such; and mean_margin, the labelled rows' mean margin. The last two are 0 where no
            row is labelled, and have no gradient. With a group cross_entropy is 0 there too, and each of a rank's
            numbers is its own rows' sum divided by the ranks' mean number of labelled rows.

        Raises:
            TypeError, ValueError: A wrong type, shape, device or label.
        """
        if isinstance(weight, Tensor):
            checks.scalar("weight", weight)
        elif weight is not None:
            checks.is_number("weight", weight)
        values = (
            {"features": features, "positive_features": positive_features} if self.weight > 0 else {"logits": logits}
        )
        ranks = _line_up(self.group if group is None else group, memory, values, labels, logits.shape[1])
        cross_entropy, margin = cross_entropy_with_margin(
            logits,
            labels,
            space=self.margin_space,
            label_smoothing=self.label_smoothing,
            ignore_index=_IGNORED_LABEL,
            reduction="mean" if ranks is None else "sum",
            backend=self.backend,
        )
        labels = labels.long()
        labelled = labels != _IGNORED_LABEL
        gate = self._gate(margin, labelled, ranks)
        count: Tensor | float
        if ranks is None:
            count = labelled.sum().clamp(min=1)
        else:
            count = max(ranks.labelled(labels), 1) / ranks.size
            cross_entropy = cross_entropy / count
        if anchors is not None:
            checks.boolean_vector("anchors", anchors, len(labels))
            gate = gate * anchors
        if self.weight > 0:
            intra_class = self._intra_class(features, positive_features, labels, gate, memory, logits.shape[1], ranks)
            weight = self.weight if weight is None else weight
            if isinstance(weight, Tensor):
                total = cross_entropy + weight * intra_class
            else:
                total = torch.add(cross_entropy, intra_class, alpha=weight)
        else:
            intra_class, total = torch.zeros_like(cross_entropy.detach()), cross_entropy
        mean_margin = torch.where(labelled, margin, 0).sum() / count
        return TeacherLossOutput(total, cross_entropy, intra_class, gate.sum() / count, mean_margin)

    def _gate(self, margin: Tensor, labelled: Tensor, ranks: "Ranks | None") -> Tensor:
        """The anchors' weights (N,), or which rows are anchors, bool (N,)."""
        if self.gate == "quantile":
            return most_confident(margin, labelled, self.gate_share, ranks)
        if self.gate == "soft":
            return soft_gate(margin, labelled, self.margin, self.gate_width)
        return margin > self.margin

    def _intra_class(
        self,
        features: Tensor,
        positive: Tensor,
        labels: Tensor,
        gate: Tensor,
        memory: ClassMemory | None,
        num_classes: int,
        ranks: "Ranks | None",
    ) -> Tensor:
        """The loss (), the mean over the own positives and the neighbours."""
        memory_rows, memory_labels = _tensors(memory)
        of_each = [
            intra_class_contrastive(
                features,
                x,
                labels,
                gate=gate,
                memory=memory_rows,
                memory_labels=memory_labels,
                temperature=self.temperature,
                num_classes=num_classes,
                group=ranks,
                backend=self.backend,
            )
            for x in self._positives(features, positive, labels, ranks)
        ]
        return of_each[0] if len(of_each) == 1 else torch.stack(of_each).mean()

    def _positives(self, features: Tensor, positive: Tensor, labels: Tensor, ranks: "Ranks | None") -> list[Tensor]:
        """The own positives (N, D), and as many more of the same shape as there are to be neighbours."""
        if not self.neighbours:
            return [positive]
        checks.float_matrix("features", features, rows=len(labels))
        checks.float_matrix("positive_features", positive, *features.shape)
        rows, of_rows, first = (positive, labels, 0) if ranks is None else _all_positives(positive, labels, ranks)
        own = torch.arange(first, first + len(labels), device=labels.device)
        nearest = nearest_of_class(features, labels, rows, of_rows, own, self.neighbours)
        return [positive, *(rows[places] for places in nearest.unbind(1))]

    def extra_repr(self) -> str:
        return (
            f"weight={self.weight}, margin={self.margin}, margin_space={self.margin_space!r}, "
            f"temperature={self.temperature}, label_smoothing={self.label_smoothing}, backend={self.backend!r}, "
            f"gate={self.gate!r}, neighbours={self.neighbours}"
        )


@disable
def _all_positives(positive: Tensor, labels: Tensor, ranks: "Ranks") -> tuple[Tensor, Tensor, int]:
    """All ranks' positives, with gradient, and their labels; and where this rank's begin."""
    return ranks.gather_with_gradient(positive), ranks.gather(labels), ranks.own.start


def _tensors(memory: ClassMemory | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if memory is None else memory.tensors()


def _line_up(
    group: "ProcessGroup | Ranks | None",
    memory: ClassMemory | None,
    values: dict[str, Tensor],
    labels: Tensor,
    num_classes: int | None,
) -> "Ranks | None":
    """What the ranks of `group` know of each other's rows, with the strategy that the memory needs; None: no group."""
    divided = memory is not None and memory.ranks > 1
    if group is None and divided:
        raise ValueError("group is None; it should be the group among whose ranks the memory is divided")
    if group is None:
        return None
    for name, x in values.items():
        checks.float_matrix(name, x)
    checks.integer_vector("labels", labels, next(iter(values.values())).shape[0])
    return _asked(group, memory, values, labels.long(), num_classes)


@disable
def _asked(
    group: "ProcessGroup | Ranks",
    memory: ClassMemory | None,
    values: dict[str, Tensor],
    labels: Tensor,
    num_classes: int | None,
) -> "Ranks":
    # Not every build of PyTorch has torch.distributed.
    from icckd.exchange import line_up

    ranks = line_up(group, values, labels=labels, num_classes=num_classes)
    if memory is not None and memory.ranks > 1:
        memory.check_divided_among(ranks)
        ranks.strategy = "owner"
    elif memory is not None and ranks.size > 1 and ranks.strategy == "owner":
        raise ValueError("memory holds all classes; with the strategy 'owner' it should be made with the group")
    return ranks
