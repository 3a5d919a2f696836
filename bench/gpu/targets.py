"""The targets of the GPU backends, and what recorded rows say of them.

The time of a step is the least of launching it and of replaying it from a CUDA graph. Bytes are counted as one read of
anchor and positive and one write of their gradients (cross-entropy: of the logits), matrix operations as 6 · pairs · D,
both against the ceilings measured in the same run.
"""

from collections.abc import Callable
from dataclasses import dataclass

from bench.gpu import cases
from icckd.bench.case import Case
from icckd.bench.measure import Row


@dataclass(frozen=True)
class Target:
    """What should be reached: `measure(rows)` at least `bound`, or at most. None: it was not measured."""

    text: str
    backend: str
    bound: float
    unit: str
    measure: Callable[[list[Row]], float | None]
    at_most: bool = False

    def outcome(self, rows: list[Row]) -> tuple[float | None, str]:
        """What was measured, and "met", "missed" or "owed"."""
        value = self.measure(rows)
        if value is None:
            return None, "owed"
        met = value <= self.bound if self.at_most else value >= self.bound
        return value, "met" if met else "missed"


def targets(tiny: bool = False) -> list[Target]:
    """Every target; of a dry run's tiny cases with `tiny`."""

    def name(case: Case) -> str:
        return (case.tiny() if tiny else case).name

    small = [name(case) for case in cases.SMALL_CLASSES]
    short = [name(case) for case in cases.SHORT]
    bytes_, mixed, compute = (name(case) for case in (cases.BYTES, cases.MIXED, cases.COMPUTE))
    margin, million, layout = (name(case) for case in (cases.MARGIN, cases.MILLION, cases.LAYOUT))
    supervised = name(cases.SUPERVISED)
    bandwidth, rate = "fraction_of_bandwidth", "fraction_of_matrix_rate"
    first, cross_entropy = "N = 65,536, D = 512", "margin + cross-entropy, N = 65,536, C = 1000"
    copied, multiplied = "share of the copy bandwidth", "share of the matrix rate"
    compiled, flex = "dense, torch.compile", "FlexAttention"
    ours = "icckd triton"

    def in_one_step(rows: list[Row]) -> float | None:
        return None if _time(rows, million, ours) is None else 1.0

    return [
        Target(f"{first}, C = 1000: {copied}", "triton", 0.80, "", _share([bytes_], bandwidth, "triton")),
        Target(f"{first}, C = 100: {multiplied}", "triton", 0.50, "", _share([mixed], rate, "triton")),
        Target(f"{first}, C = 10: {multiplied}", "triton", 0.65, "", _share([compute], rate, "triton")),
        Target(f"{first}, C = 1000: over {compiled}", "triton", 10, "×", _factor(bytes_, [compiled])),
        Target(f"{first}, C = 1000: over {flex}", "triton", 3, "×", _factor(bytes_, [flex, f"{flex}, small tiles"])),
        Target(f"supervised contrast, N = 16,384: over {compiled}", "triton", 2, "×", _factor(supervised, [compiled])),
        Target("every measured case: over its best peer", "triton", 1, "×", _least_factor("triton")),
        Target("N = 1,048,576, D = 512, C = 10,000", "triton", 1, "step", in_one_step),
        Target(f"{cross_entropy}: {copied}", "triton", 0.85, "", _share([margin], bandwidth, "triton")),
        Target("loss and gradients, N = 1024, CUDA graph", "triton", 60, "µs", _longest(short, ours), at_most=True),
        Target(f"{first}, C = 1000: {copied}", "cuda", 0.85, "", _share([bytes_], bandwidth, "cuda")),
        Target(f"D = 128 … 1024, 8 … 128 rows a class: {copied}", "cuda", 0.70, "", _share(small, bandwidth, "cuda")),
        Target(f"{cross_entropy}: {copied}", "cuda", 0.90, "", _share([margin], bandwidth, "cuda")),
        Target("class layout, N = 65,536, C = 1000", "cuda", 15, "µs", _longest([layout], "icckd cuda"), at_most=True),
    ]


def best(rows: list[Row], case: str, contender: str) -> Row | None:
    """The row of a contender's fastest way to take a step, or where there are no gradients to compute it."""
    own = [row for row in rows if row.get("case") == case and row.get("contender") == contender and "mode" in row]
    steps = [row for row in own if row["mode"].startswith("step")] or own
    return min(steps, key=lambda row: row["median_ms"], default=None)


def _time(rows: list[Row], case: str, contender: str) -> float | None:
    row = best(rows, case, contender)
    return None if row is None else row["median_ms"]


def _share(names: list[str], key: str, backend: str) -> Callable[[list[Row]], float | None]:
    """The least share over some cases; None unless all were measured."""

    def measure(rows: list[Row]) -> float | None:
        found = [best(rows, name, f"icckd {backend}") for name in names]
        shares = [row[key] for row in found if row is not None and row[key] is not None]
        return min(shares) if len(shares) == len(names) else None

    return measure


def _longest(names: list[str], contender: str) -> Callable[[list[Row]], float | None]:
    """The longest time over some cases, in microseconds."""

    def measure(rows: list[Row]) -> float | None:
        times = [time for name in names if (time := _time(rows, name, contender)) is not None]
        return 1e3 * max(times) if len(times) == len(names) else None

    return measure


def _factor(case: str, peers: list[str]) -> Callable[[list[Row]], float | None]:
    """How many times the time of the faster of these peers is that of the Triton backend."""

    def measure(rows: list[Row]) -> float | None:
        ours = _time(rows, case, "icckd triton")
        theirs = [time for peer in peers if (time := _time(rows, case, peer)) is not None]
        return min(theirs) / ours if ours is not None and theirs else None

    return measure


def _least_factor(backend: str) -> Callable[[list[Row]], float | None]:
    """The least of the factors over the best peer, of all cases that peers computed too."""

    def measure(rows: list[Row]) -> float | None:
        factors = []
        speed = [row for row in rows if row.get("stage") == "speed"]
        for case in dict.fromkeys(row["case"] for row in speed):
            peers = {row["contender"] for row in speed if row["case"] == case and row["is_peer"]}
            times = [time for peer in peers if (time := _time(speed, case, peer)) is not None]
            ours = _time(speed, case, f"icckd {backend}")
            if ours is not None and times:
                factors.append(min(times) / ours)
        return min(factors, default=None)

    return measure
