"""Cases of the intra-class loss, and who can compute each: the library's backends, and the peers beside them."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import peers
from bench.peers import TEMPERATURE, Inputs, Loss
from icckd import backends
from icckd.functional import intra_class_contrastive

ACTIVE = 0.7
LARGEST_GIGABYTES = 8


@dataclass(frozen=True)
class Case:
    """N rows of D numbers in C classes: "equal" ones, "skewed" as 1/rank, or "half" of all rows in one."""

    n: int
    d: int
    c: int
    sizes: str = "equal"

    def __str__(self) -> str:
        return f"N = {self.n:,}, D = {self.d}, C = {self.c:,}, {self.sizes} classes"


def make_inputs(
    case: Case, seed: int, device: torch.device, dtype: torch.dtype = torch.float32, active: float = ACTIVE
) -> Inputs:
    """Fresh random inputs of a case; classes of exactly the sizes it says, in random order."""
    random = torch.Generator(device).manual_seed(seed)
    anchor, positive = (torch.randn(case.n, case.d, generator=random, device=device).to(dtype) for _ in range(2))
    labels = class_labels(case).to(device)[torch.randperm(case.n, generator=random, device=device)]
    gate = torch.rand(case.n, generator=random, device=device).argsort() < active * case.n
    return Inputs(anchor, positive, labels, gate, case.c)


def class_labels(case: Case) -> Tensor:
    """The label of every row (N,), class by class."""
    if case.sizes == "equal":
        return torch.arange(case.n) * case.c // case.n
    shares = 1 / torch.arange(1, case.c + 1, dtype=torch.float64)
    if case.sizes == "half":
        shares = torch.full((case.c,), 1 / (case.c - 1), dtype=torch.float64)
        shares[0] = 1
    ends = (shares.cumsum(0) / shares.sum() * case.n).round()
    return torch.searchsorted(ends, torch.arange(case.n, dtype=torch.float64), right=True).clamp(max=case.c - 1)


def evaluate(loss: Loss, x: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of anchor and positive, through autograd."""
    anchor, positive = x.anchor.detach().requires_grad_(), x.positive.detach().requires_grad_()
    value = loss(Inputs(anchor, positive, x.labels, x.gate, x.classes))
    value.backward()
    return value.detach(), anchor.grad, positive.grad


def contenders(case: Case, device: torch.device, *, with_slow: bool = False) -> dict[str, Loss]:
    """Who can compute this case here, by name; a peer that cannot is left out, and said so.

    with_slow: Peers that need seconds a call, too.
    """
    chosen: dict[str, Loss] = {}
    for name in backends.BACKENDS:
        if backends.why_unavailable(name) is None and name in ("reference", device.type, "triton"):
            chosen[f"icckd {name}"] = ours(name)
    for peer in _PEERS:
        if peer.slow and not with_slow:
            continue
        reason = _why_not(peer, case)
        if reason:
            print(f"    {peer.name}: left out, {reason}")
        else:
            chosen[peer.name] = peer.loss
    return chosen


def ours(backend: str) -> Loss:
    """The library's loss by one of its backends."""

    def loss(x: Inputs) -> Tensor:
        return intra_class_contrastive(
            x.anchor, x.positive, x.labels, gate=x.gate, temperature=TEMPERATURE, num_classes=x.classes, backend=backend
        )

    return loss


@dataclass(frozen=True)
class _Peer:
    """A peer, the numbers of 4 bytes that it holds at once for a case, and the package that it needs."""

    name: str
    loss: Loss
    numbers: Callable[[Case], float]
    package: str | None = None
    slow: bool = False


def _padded_numbers(case: Case) -> float:
    largest = int(class_labels(case).bincount().max())
    return 4 * case.c * largest**2 + 6 * case.c * largest * case.d


_PEERS = [
    _Peer("loop over classes", peers.loop_over_classes, lambda case: 4 * int(class_labels(case).bincount().max()) ** 2),
    _Peer("padded bmm", peers.padded_bmm, _padded_numbers),
    _Peer("padded bmm, gradient by hand", peers.padded_by_hand, _padded_numbers),
    _Peer("dense", peers.dense, lambda case: 5 * case.n**2, slow=True),
    _Peer("dense, torch.compile", torch.compile(peers.dense, dynamic=False), lambda case: 5 * case.n**2, slow=True),
    _Peer("KeOps", peers.keops, lambda case: 6 * case.n * case.d, "pykeops", slow=True),
    # 6.3 GB at N = 4096: its masks over all rows and the listed pairs.
    _Peer(
        "pytorch-metric-learning",
        peers.metric_learning,
        lambda case: 100 * case.n**2,
        "pytorch_metric_learning",
        slow=True,
    ),
]


def _why_not(peer: _Peer, case: Case) -> str | None:
    if peer.package and importlib.util.find_spec(peer.package) is None:
        return f"{peer.package} is not installed (pip install icckd[bench])"
    gigabytes = 4 * peer.numbers(case) / 1e9
    return f"it would take about {gigabytes:.0f} GB" if gigabytes > LARGEST_GIGABYTES else None
