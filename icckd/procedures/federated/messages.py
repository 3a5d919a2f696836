"""What a server asks of its clients, and what they answer."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from icckd.methods.pkd import Group

# A network's state dict, on the host.
State = dict[str, Tensor]
Kind = Literal["train", "confusion", "expert"]


@dataclass(frozen=True)
class Question:
    """What is asked of a client. It keeps nothing from one to the next, so all that it needs is here.

    Args:
        kind: "train": train the network for a round. "confusion": count which classes it takes for which. "expert":
            train the expert of a group for a round, on images of the group alone.
        round: Which round it is, from 0: of all, or of this expert's.
        network: What is to be trained, or asked.
        groups: That of the expert; of "train" those that have experts.
        experts: Theirs, in this order.
    """

    kind: Kind
    round: int
    network: State
    groups: tuple[Group, ...] = ()
    experts: tuple[State, ...] = ()

    @property
    def bytes(self) -> int:
        """What its tensors take on their way; the rest is some dozens of bytes, and not counted."""
        return sum(_bytes(state.values()) for state in (self.network, *self.experts))


@dataclass(frozen=True)
class Answer:
    """What a client found.

    Args:
        images: Of how many of its images it is made.
        network: The trained network; None where there are too few images for it.
        confusion: Images of class a (row) that are taken for b (column), int64 (C, C), if that was asked.
        losses: By name, the means over the steps.
        steps: How many there were.
        skipped: How many of these were left out, their loss or gradient not being finite.
    """

    images: int
    network: State | None = None
    confusion: Tensor | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    steps: int = 0
    skipped: int = 0

    @property
    def bytes(self) -> int:
        """As a question's."""
        confusion = [] if self.confusion is None else [self.confusion]
        return _bytes([*(self.network or {}).values(), *confusion])


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_of(network: nn.Module) -> State:
    """The state of `network` as it is now: a copy, whatever becomes of it."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}


class Tally:
    """The answers to one question, added up as they come.

    Networks are averaged with the weights of their numbers of images (McMahan et al. 2017, arXiv 1602.05629), the
    running statistics of normalisations among them, in float64 and in the order in which answers come; whole numbers
    are rounded.
    """

    def __init__(self) -> None:
        self.answered: list[int] = []
        self.images = 0
        self.steps = 0
        self.skipped = 0
        self.confusion: Tensor | None = None
        self._network: State = {}
        self._losses: dict[str, float] = {}

    def add(self, client: int, answer: Answer) -> None:
        """Count the answer of `client`, which has not answered yet."""
        self.answered.append(client)
        self.steps += answer.steps
        self.skipped += answer.skipped
        if answer.confusion is not None:
            self.confusion = answer.confusion.clone() if self.confusion is None else self.confusion + answer.confusion
        if answer.network is None:
            return
        self.images += answer.images
        for name, tensor in answer.network.items():
            weighted = tensor.double() * answer.images
            self._network[name] = self._network[name] + weighted if name in self._network else weighted
        for name, loss in answer.losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + answer.images * loss

    def network(self, before: State) -> State:
        """The average network; `before`, of which its dtypes are, where nobody trained one."""
        if not self.images:
            return before
        means = {name: self._network[name] / self.images for name in before}
        return {
            name: (mean if before[name].is_floating_point() else mean.round()).to(before[name].dtype)
            for name, mean in means.items()
        }

    def losses(self) -> dict[str, float]:
        """The mean losses by name, weighted likewise."""
        return {name: total / self.images for name, total in self._losses.items()}

    def state(self) -> dict[str, object]:
        """What `restored` needs, as lists, dicts, numbers and tensors."""
        return {
            "answered": list(self.answered),
            "images": self.images,
            "steps": self.steps,
            "skipped": self.skipped,
            "confusion": self.confusion,
            "network": dict(self._network),
            "losses": dict(self._losses),
        }

    @classmethod
    def restored(cls, state: Mapping[str, object]) -> "Tally":
        """The tally whose `state()` it is."""
        tally = cls()
        for name, attribute in (("network", "_network"), ("losses", "_losses")):
            setattr(tally, attribute, dict(state[name]))  # type: ignore[call-overload]
        tally.answered = list(state["answered"])  # type: ignore[call-overload]
        tally.images, tally.steps, tally.skipped = (int(state[n]) for n in ("images", "steps", "skipped"))  # type: ignore[call-overload]
        confusion = state["confusion"]
        tally.confusion = confusion if isinstance(confusion, torch.Tensor) else None
        return tally
