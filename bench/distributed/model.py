"""What the exchange takes on 8 to 1024 GPUs, by formula: bytes from the algorithms, times from published speeds.

Nothing of the times is measured. The bytes are compared with counted ones where processes are few (`bench.distributed`,
and a test). A strategy is a list of transfers, one after another, each at the time of its own pattern:

- *around*: collectives that go around a ring of all ranks. A ring leaves and enters each node once; NCCL lays one over
  every network adapter, so that the ring of all is as fast as NVLink or as all adapters of a node together.
- *neighbour*: a block to the next rank, by itself. Between nodes it has the one adapter of its GPU.
- *all-to-all*: to each other rank its own part. Those to other nodes share the one adapter of their GPU ("Alltoall
  cannot aggregate the bandwidth of multiple NICs", github.com/NVIDIA/nccl-tests, issue 267).

A time is latency + bytes / speed, by the quicker of two of NCCL's protocols, as NCCL itself reckons (ncclTopoTuneModel in
src/graph/tuning.cc of github.com/NVIDIA/nccl at 01afd20): "Simple", and "LL" with short steps at a part of the speed.

Assumed: `ACHIEVED`, the share of a link's speed that transfers get. The messages of an all-to-all leave one after
another, each in the time that a step around a ring takes: NCCL has several under way at once, so this is unfavourable to
owners. Ranks arrive at the same time, nothing else uses the links, and nothing is hidden behind arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass

# The published share of a network adapter is 46 to 49 of 50 GB/s (nccl-tests, issues 267 and 290); NVLink's is lower.
ACHIEVED = 0.8
LABEL = 8


@dataclass(frozen=True)
class Machine:
    """Nodes of 8 GPUs, each with its own network adapter: bytes a second of a GPU in one direction."""

    name: str
    nvlink: float
    network: float
    gpus: int = 8


# NVIDIA's data sheets. NVLink counts both directions together: 900 GB/s of an H100, 600 of an A100. Adapters: DGX H100,
# eight ConnectX-7 of 400 Gb/s (InfiniBand NDR); DGX A100, eight of 200 Gb/s (HDR).
H100 = Machine("H100, InfiniBand NDR", 450e9, 50e9)
A100 = Machine("A100, InfiniBand HDR", 300e9, 25e9)


@dataclass(frozen=True)
class Protocol:
    """Seconds to start, and for each step by NVLink and by the network; the part of a link's speed that is left."""

    start: float
    nvlink_step: float
    network_step: float
    speed: float


# As in that file, for rings.
SIMPLE = Protocol(8.4e-6, 3.4e-6, 9.6e-6, 1)
LL = Protocol(3.6e-6, 0.47e-6, 2.7e-6, 1 / 4)
# Steps of LL by NVLink take longer where there are several nodes.
LL_BETWEEN_NODES = Protocol(3.6e-6, 1.8 * 0.47e-6, 2.7e-6, 1 / 4)


@dataclass(frozen=True)
class Batch:
    """Rows of `dim` numbers of `width` bytes, equally many on every rank; classes of equal size.

    away: How many of a rank's rows have another owner; None for what is expected, rows · (W − 1) / W.
    arriving: How many come to the owner that most come to; None for the one with most classes.
    """

    ranks: int
    rows: int
    classes: int
    dim: int
    width: int = 4
    away: float | None = None
    arriving: float | None = None

    @property
    def bytes_of_rows(self) -> int:
        """Of the embeddings of a rank."""
        return self.rows * self.dim * self.width

    @property
    def leaving(self) -> float:
        return self.rows * (self.ranks - 1) / self.ranks if self.away is None else self.away

    @property
    def coming(self) -> float:
        if self.arriving is not None:
            return self.arriving
        most_classes = -(-self.classes // self.ranks)
        return most_classes * (self.ranks - 1) * self.rows / self.classes


@dataclass(frozen=True)
class Transfer:
    """What every rank sends at once: bytes, in so many steps of a pattern, each to one other rank."""

    pattern: str
    bytes: float
    steps: int

    def seconds(self, machine: Machine, ranks: int) -> float:
        nodes = -(-ranks // machine.gpus)
        protocols = (SIMPLE, LL if nodes == 1 else LL_BETWEEN_NODES)
        between = self._between_nodes(nodes, ranks, machine.gpus)
        return min(
            protocol.start
            + (self.steps - between) * protocol.nvlink_step
            + between * protocol.network_step
            + self._at_full_speed(machine, nodes, between) / (ACHIEVED * protocol.speed)
            for protocol in protocols
        )

    def _between_nodes(self, nodes: int, ranks: int, gpus: int) -> int:
        """The steps that go from node to node; of blocks to a neighbour somebody always waits for those."""
        if nodes == 1:
            return 0
        if self.pattern == "around":
            return self.steps // (ranks - 1) * (nodes - 1)
        return self.steps if self.pattern == "neighbour" else ranks - gpus

    def _at_full_speed(self, machine: Machine, nodes: int, between: int) -> float:
        if nodes == 1:
            return self.bytes / machine.nvlink
        if self.pattern == "around":
            return self.bytes / min(machine.nvlink, machine.gpus * machine.network)
        share = between / self.steps
        return max((1 - share) * self.bytes / machine.nvlink, share * self.bytes / machine.network)


def _around(batch: Batch, bytes_of_a_rank: float, passes: int = 1) -> Transfer:
    others = batch.ranks - 1
    return Transfer("around", passes * others * bytes_of_a_rank, passes * others)


def gather(batch: Batch) -> list[Transfer]:
    """This project's: rows and labels to all; sums of gradients, in float32, of all rows."""
    gradients = batch.rows * batch.dim * max(batch.width, 4)
    return [
        _around(batch, batch.bytes_of_rows),
        _around(batch, LABEL * batch.rows),
        _around(batch, gradients, passes=2),
    ]


def all_gather(batch: Batch) -> list[Transfer]:
    """The peer's: rows and labels to all; gradients reduced and scattered."""
    return [
        _around(batch, batch.bytes_of_rows),
        _around(batch, LABEL * batch.rows),
        _around(batch, batch.bytes_of_rows),
    ]


def ring(batch: Batch) -> list[Transfer]:
    """Rows and labels around, forward and backward; gradients around and home."""
    others = batch.ranks - 1
    block = batch.bytes_of_rows + LABEL * batch.rows
    return [
        Transfer("neighbour", others * block, others),
        Transfer("neighbour", others * block + batch.ranks * batch.bytes_of_rows, others + batch.ranks),
    ]


def owner(batch: Batch) -> list[Transfer]:
    """This project's: each row to its owner, and its gradient home."""
    row, others = batch.dim * batch.width, batch.ranks - 1
    return [
        Transfer("all-to-all", batch.leaving * row, others),
        Transfer("all-to-all", batch.coming * row, others),
    ]


STRATEGIES: dict[str, Callable[[Batch], list[Transfer]]] = {
    "icckd, gather": gather,
    "icckd, owner": owner,
    "all-gather with gradients": all_gather,
    "ring": ring,
}


def sent_bytes(strategy: str, batch: Batch) -> float:
    """What a rank sends in forward and backward, 0 where it is alone."""
    return sum(transfer.bytes for transfer in STRATEGIES[strategy](batch)) if batch.ranks > 1 else 0


def seconds(strategy: str, batch: Batch, machine: Machine) -> float:
    """Of forward and backward."""
    return sum(transfer.seconds(machine, batch.ranks) for transfer in STRATEGIES[strategy](batch))
