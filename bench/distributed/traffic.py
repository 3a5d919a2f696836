"""Bytes that a rank sends: what it hands to PyTorch's collectives, and what of it their algorithms send to others.

| collective | what a rank sends, of the b bytes handed in by a rank, over W ranks |
|---|---|
| all-gather | (W − 1) b: everybody else needs them, whoever passes them on |
| all-reduce | 2 (W − 1) / W · b: a ring reduces and scatters, then gathers |
| reduce-scatter, broadcast | (W − 1) / W · b, on average over the ranks (gloo reduces and scatters by an all-reduce) |
| all-to-all, scatter | what is for others |
| send | b |

nccl-tests turns times into bandwidths by the same factors (doc/PERFORMANCE.md of github.com/NVIDIA/nccl-tests).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operators of PyTorch's collectives that move no numbers, or are counted by another's.
_SILENT = {"barrier", "monitored_barrier_", "recv_", "wait_tensor", "_wrap_tensor_autograd"}


class Traffic(TorchDispatchMode):
    """Counts what this process sends to a group's other ranks while it is entered, in forward and backward.

    sent: Bytes. messages: how many it sends: W − 1 a step of a ring, one for each rank that anything is for.

    Raises RuntimeError at a collective that it does not know, so that nothing is left out.
    """

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        self.rank, self.world = rank, world
        self.sent, self.messages = 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func._schema.name.split("::")[1], args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        if name in _SILENT:
            return
        if name not in _OF_COLLECTIVE:
            raise RuntimeError(f"{name} is a collective whose bytes nobody counts; bench/distributed/traffic.py should")
        parts = _OF_COLLECTIVE[name](args, self.rank, self.world)
        self.sent += sum(parts)
        self.messages += sum(part > 0 for part in parts)


def _ring(passes: int) -> Callable[[Sequence[Tensor], int], list[float]]:
    """So many turns around the ring, each of W − 1 steps that send the W-th part of the tensors."""
    return lambda tensors, world: [_bytes(tensors) / world] * (passes * (world - 1))


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


_Parts = Callable[[tuple[Any, ...], int, int], list[float]]
_twice_around, _around = _ring(2), _ring(1)


def _all_gather(mine: Callable[[tuple[Any, ...]], Sequence[Tensor]]) -> _Parts:
    return lambda args, rank, world: [float(_bytes(mine(args)))] * (world - 1)


def _all_to_all(source: Tensor, splits: Sequence[int], rank: int, world: int) -> list[float]:
    rows = splits or [len(source) // world] * world
    each = _bytes([source]) / max(len(source), 1)
    return [each * count for other, count in enumerate(rows) if other != rank]


def _scatter(args: tuple[Any, ...], rank: int, world: int) -> list[float]:
    _, sources, _, root, *_ = args
    if rank != root:
        return []
    return [float(_bytes([x])) for other, x in enumerate(sources[0]) if other != root]


# By the names of PyTorch's operators, and their arguments in its order: outputs before inputs.
_OF_COLLECTIVE: dict[str, _Parts] = {
    "allgather_": _all_gather(lambda args: args[1]),
    "_allgather_base_": _all_gather(lambda args: [args[1]]),
    "all_gather_into_tensor": _all_gather(lambda args: [args[0]]),
    "allreduce_": lambda args, rank, world: _twice_around(args[0], world),
    "all_reduce": lambda args, rank, world: _twice_around([args[0]], world),
    "all_reduce_": lambda args, rank, world: _twice_around([args[0]], world),
    "_reduce_scatter_base_": lambda args, rank, world: _around([args[1]], world),
    "reduce_scatter_": lambda args, rank, world: _around(args[1][0], world),
    "reduce_scatter_tensor": lambda args, rank, world: _around([args[0]], world),
    "broadcast_": lambda args, rank, world: _around(args[0], world),
    "alltoall_base_": lambda args, rank, world: _all_to_all(args[1], args[4], rank, world),
    "all_to_all_single": lambda args, rank, world: _all_to_all(args[0], args[2], rank, world),
    "alltoall_": lambda args, rank, world: [float(_bytes([x])) for r, x in enumerate(args[1]) if r != rank],
    "scatter_": _scatter,
    "send": lambda args, rank, world: [float(_bytes(args[0]))],
}


@dataclass
class Loopback:
    """The kernel's count of bytes that this machine has sent to itself: by gloo, between processes of one machine.

    Headers of packets, acknowledgements and whatever else the machine sends itself are among them.
    """

    before: int = 0

    def start(self) -> None:
        self.before = self._count()

    def since(self) -> int:
        return self._count() - self.before

    @staticmethod
    def _count() -> int:
        lines = Path("/proc/net/dev").read_text().splitlines()
        fields = next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()
        return int(fields[8])
