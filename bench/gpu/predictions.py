"""What a step was predicted to take before a GPU had run it, beside what it takes: where the thinking was wrong.

For an H100 (3.0 TB/s copied, 798 TFLOP/s in bfloat16), a step replayed from a CUDA graph, in microseconds: `read` from
the code and the machine code at commit 7011dc5, `changed` for the kernels as they have been rewritten since, by those
who rewrote them. docs/gpu.md says what the predictions are made of.
"""

from dataclasses import dataclass

from bench.gpu import cases
from bench.gpu.cases import BF16, KdKl
from bench.gpu.ceilings import Ceilings
from bench.gpu.targets import best
from icckd.bench.case import Case
from icckd.bench.measure import Row

_H100 = Ceilings(3.0e12, {BF16: 798e12})


@dataclass(frozen=True)
class Prediction:
    """Microseconds of a case's step by a backend; of `read`, the lowest and the highest where they were a range."""

    case: Case
    text: str
    backend: str
    read: tuple[float, float]
    changed: float

    @property
    def floor(self) -> float:
        """Microseconds that nothing could be faster than on that H100."""
        work = self.case.work(backward=True)
        return 1e6 * (_H100.floor(work.bytes, work.flop, self.case.dtype) or 0.0)


_D512, _MILLION = "N = 65,536, D = 512", "N = 1,048,576, D = 512, C = 10,000"
PREDICTIONS = [
    Prediction(cases.BYTES, f"{_D512}, C = 1000", "triton", (435, 435), 165),
    Prediction(cases.BYTES, f"{_D512}, C = 1000", "cuda", (280, 280), 135),
    Prediction(cases.MIXED, f"{_D512}, C = 100", "triton", (1180, 1180), 710),
    Prediction(cases.COMPUTE, f"{_D512}, C = 10", "triton", (7400, 7400), 4800),
    Prediction(cases.BATCH, "N = 8192, D = 128, C = 100", "triton", (55, 65), 30),
    Prediction(cases.MILLION, _MILLION, "triton", (10_000, 10_000), 2200),
    Prediction(cases.MILLION, _MILLION, "cuda", (4400, 4400), 1800),
    Prediction(cases.MARGIN, "margin + cross-entropy, N = 65,536, C = 1000", "triton", (225, 250), 105),
    Prediction(KdKl(BF16), "KD-KL, N = 65,536, C = 1000", "triton", (300, 360), 140),
]


def table(rows: list[Row]) -> str:
    """Every prediction, and what each run with recorded times measured beside it: empty where it did not come to it."""
    timed = sorted((row for row in rows if "median_ms" in row), key=lambda row: row["date"])
    commits = list(dict.fromkeys(row["commit"] for row in timed))
    header = ["step in bfloat16, µs", "backend", "floor", "predicted of 7011dc5", "predicted of the changes"]
    header += [f"measured at {commit[:7]}" for commit in commits] or ["measured"]
    lines = [header, ["---", "---", *["--:"] * (len(header) - 2)]]
    for prediction in PREDICTIONS:
        low, high = prediction.read
        read = f"{low:,.0f}" if low == high else f"{low:,.0f}–{high:,.0f}"
        line = [prediction.text, prediction.backend, f"{prediction.floor:,.0f}", read, f"{prediction.changed:,.0f}"]
        runs = [[row for row in rows if row["commit"] == commit] for commit in commits] or [[]]
        found = [best(run, prediction.case.name, f"icckd {prediction.backend}") for run in runs]
        lines.append([*line, *("" if row is None else f"{1e3 * row['median_ms']:,.0f}" for row in found)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
