"""What `icckd bench` measures: functions of `icckd.functional` by name, each with its usual sizes.

The files hold a family each: inputs, our ways and others', the least work. The definition is what the `reference`
backend computes in float64.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from icckd.bench.case import Case
from icckd.bench.functions.cross_entropy import CrossEntropy
from icckd.bench.functions.distillation import KdKl, Relational
from icckd.bench.functions.intra_class import IntraClass
from icckd.bench.functions.supervised_contrastive import SupervisedContrastive

# Options and the sizes that they mean: N rows, D numbers each, C classes.
AXES = {"rows": "n", "dim": "d", "classes": "c"}
_QUICK: Mapping[str, Sequence[int]] = {"n": (64,), "d": (16,), "c": (8,)}
Sizes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Benchmark:
    """How to make a function's cases, and the sizes that are measured unless others are wanted: by kind of device."""

    make: Callable[..., Case]
    usual: Mapping[str, Sizes]

    def cases(self, kind: str, dtypes: Sequence[str], wanted: Sizes) -> list[Case]:
        """A case for every dtype and combination of sizes: those `wanted`, else the usual ones of "cpu" or "cuda".

        "quick": tiny ones instead.
        """
        usual = self.usual.get(kind) or {axis: _QUICK[axis] for axis in self.usual["cpu"]}
        sizes = {axis: wanted.get(axis) or values for axis, values in usual.items()}
        combined = [dict(zip(sizes, values, strict=True)) for values in product(*sizes.values())]
        return list(dict.fromkeys(self.make(dtype=dtype, **chosen) for dtype in dtypes for chosen in combined))


FUNCTIONS = {
    "intra_class_contrastive": Benchmark(
        IntraClass,
        {
            "cpu": {"n": (2048,), "d": (128,), "c": (10, 100, 1000)},
            "cuda": {"n": (65536,), "d": (512,), "c": (10, 100, 1000)},
        },
    ),
    "supervised_contrastive": Benchmark(
        SupervisedContrastive,
        {"cpu": {"n": (2048,), "d": (128,), "c": (100,)}, "cuda": {"n": (16384,), "d": (128,), "c": (100,)}},
    ),
    "cross_entropy_with_margin": Benchmark(
        CrossEntropy, {"cpu": {"n": (8192,), "c": (1000,)}, "cuda": {"n": (65536,), "c": (1000,)}}
    ),
    "kd_kl": Benchmark(KdKl, {"cpu": {"n": (8192,), "c": (1000,)}, "cuda": {"n": (65536,), "c": (1000,)}}),
    "rkd_distance": Benchmark(
        partial(Relational, relation="distance"),
        {"cpu": {"n": (512,), "d": (128,)}, "cuda": {"n": (4096,), "d": (512,)}},
    ),
    "rkd_angle": Benchmark(
        partial(Relational, relation="angle"), {"cpu": {"n": (128,), "d": (128,)}, "cuda": {"n": (512,), "d": (512,)}}
    ),
}
