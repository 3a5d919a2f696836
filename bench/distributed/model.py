"""What the exchange takes on 8 to 1024 GPUs, by formula: bytes from the algorithms, times from published speeds.

Nothing of the times is measured. The bytes are compared with counted ones where processes are few (`bench.distributed`,
and a test). A strategy is a list of transfers, one after another, each at the time of its own pattern:

- *around*: collectives that go around a ring of all ranks. A ring leaves and enters each node once; NCCL lays one over
  every network adapter, so that the ring of all is as fast as NVLink or as all adapters of a node together.
- *tree*: the sum of a number, up and down a tree of nodes.
- *neighbour*: a block to the next rank, by itself. Between nodes it has the one adapter of its GPU.
- *all-to-all*: to each other rank its own part. Those to other nodes share the one adapter of their GPU ("Alltoall
  cannot aggregate the bandwidth of multiple NICs", github.com/NVIDIA/nccl-tests, issue 267).

A time is latency + bytes / speed, by the quicker of two of NCCL's protocols, as NCCL itself reckons (ncclTopoTuneModel
in src/graph/tuning.cc of github.com/NVIDIA/nccl at 01afd20): "Simple", and "LL", whose steps are short, at a part of
the speed.

Assumed: `ACHIEVED`, the share of a link's speed that transfers get. The messages of an all-to-all leave one after
another, each in the time that a step around a ring takes: NCCL has several under way at once, so this is unfavourable
to owners. Ranks arrive at the same time, nothing else uses the links, and nothing is hidden behind arithmetic.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

# Of a network adapter's 50 GB/s 46 to 49 are reported (nccl-tests, issues 267 and 290); of NVLink's this is a guess.
ACHIEVED = 0.8
# Bytes of a label, and of a weight or a sum of weights.
_LABEL, _SCALAR = 8, 4


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
# LL up and down a tree.
TREE = Protocol(4.4e-6, 1.8 * 0.52e-6, 5.0e-6, 1 / 4)


@dataclass(frozen=True)
class Batch:
    """Rows of `dim` numbers of `width` bytes, equally many on every rank, and shuffled.

    Classes are of equal size, but that the first has the share `dominating` of all rows besides.
    """

    ranks: int
    rows: int
    classes: int
    dim: int
    width: int = 4
    dominating: float = 0.0

    @property
    def row(self) -> int:
        """Bytes of an embedding."""
        return self.dim * self.width

    @property
    def leaving(self) -> float:
        """Those of a rank's rows that another rank owns, on average."""
        return self.rows * (self.ranks - 1) / self.ranks

    @property
    def coming(self) -> float:
        """The rows that come to the owner of the first class, to which most come."""
        classes = -(-self.classes // self.ranks)
        owned = self.dominating + (1 - self.dominating) * classes / self.classes
        return owned * self.rows * (self.ranks - 1)


@dataclass(frozen=True)
class Transfer:
    """What every rank sends at once: bytes, in so many steps of a pattern, each to one other rank.

    most: Bytes of the rank that sends most; None where all send as much.
    """

    pattern: str
    bytes: float
    steps: int
    most: float | None = None

    def seconds(self, machine: Machine, ranks: int) -> float:
        nodes = -(-ranks // machine.gpus)
        if self.pattern == "tree":
            within, across = min(ranks, machine.gpus) - 1, math.log2(nodes)
            return TREE.start + 2 * (within * TREE.nvlink_step + across * TREE.network_step)
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
        most = self.bytes if self.most is None else self.most
        if nodes == 1:
            return most / machine.nvlink
        if self.pattern == "around":
            return most / min(machine.nvlink, machine.gpus * machine.network)
        share = between / self.steps
        return max((1 - share) * most / machine.nvlink, share * most / machine.network)


def _around(batch: Batch, bytes_of_a_rank: float, passes: int = 1) -> Transfer:
    others = batch.ranks - 1
    return Transfer("around", passes * others * bytes_of_a_rank, passes * others)


def _number(batch: Batch) -> Transfer:
    """The sum of one number over the ranks."""
    others = batch.ranks - 1
    return Transfer("tree", 2 * others * _SCALAR / batch.ranks, 2 * others)


def gather(batch: Batch) -> list[Transfer]:
    """This project's: rows and labels to all; sums of the gradients of all rows, in float32."""
    return [
        _number(batch),
        _around(batch, batch.rows * batch.row),
        _around(batch, batch.rows * _LABEL),
        _around(batch, batch.rows * batch.dim * max(batch.width, 4), passes=2),
    ]


def owner(batch: Batch) -> list[Transfer]:
    """This project's: anchor, positive, label and weight of each row to its owner; both gradients home."""
    others, both = batch.ranks - 1, 2 * batch.row
    return [
        _number(batch),
        Transfer("all-to-all", batch.leaving * (both + _LABEL + _SCALAR), others),
        Transfer("all-to-all", batch.leaving * both, others, most=batch.coming * both),
    ]


def auto(batch: Batch) -> list[Transfer]:
    """This project's: a class with over twice a rank's share of the rows is gathered, the others go to their owners."""
    share = batch.dominating + (1 - batch.dominating) / batch.classes
    if share * batch.ranks <= 2:
        return owner(batch)
    others = replace(batch, rows=round((1 - share) * batch.rows), dominating=0.0)
    return [*owner(others), *gather(replace(batch, rows=batch.rows - others.rows))[1:]]


def all_gather(batch: Batch) -> list[Transfer]:
    """The peer's: rows and labels to all; gradients reduced and scattered."""
    rows = _around(batch, batch.rows * batch.row)
    return [rows, _around(batch, batch.rows * _LABEL), rows]


def ring(batch: Batch) -> list[Transfer]:
    """The peer's: rows and labels around, forward and backward; gradients around and home."""
    others = batch.ranks - 1
    block, gradients = batch.rows * (batch.row + _LABEL), batch.rows * batch.row
    return [
        Transfer("neighbour", others * block, others),
        Transfer("neighbour", others * block + batch.ranks * gradients, others + batch.ranks),
    ]


STRATEGIES: dict[str, Callable[[Batch], list[Transfer]]] = {
    "icckd, gather": gather,
    "icckd, owner": owner,
    "icckd, auto": auto,
    "all-gather with gradients": all_gather,
    "ring": ring,
}


def sent_bytes(strategy: str, batch: Batch) -> float:
    """What a rank sends in forward and backward, on average over the ranks; 0 where it is alone."""
    return sum(transfer.bytes for transfer in STRATEGIES[strategy](batch)) if batch.ranks > 1 else 0.0


def seconds(strategy: str, batch: Batch, machine: Machine) -> float:
    """Of forward and backward."""
    return sum(transfer.seconds(machine, batch.ranks) for transfer in STRATEGIES[strategy](batch))


def spare(batch: Batch, machine: Machine) -> float:
    """Seconds that each message to or from an owner may take beyond what is reckoned, till gathering is as quick."""
    gained = seconds("icckd, gather", batch, machine) - seconds("icckd, owner", batch, machine)
    return gained / (2 * (batch.ranks - 1))
