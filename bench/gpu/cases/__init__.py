"""The cases that `bench.gpu` measures, the most important first, and those that it checks against float64."""

from collections.abc import Iterable

from bench.gpu.cases.class_memory import MemoryPush
from bench.gpu.cases.layout import ClassLayout
from icckd.bench.case import Case
from icckd.bench.functions.cross_entropy import CrossEntropy
from icckd.bench.functions.distillation import KdKl, Relational
from icckd.bench.functions.intra_class import IntraClass
from icckd.bench.functions.supervised_contrastive import SupervisedContrastive

BF16, FP16, FP32 = "bfloat16", "float16", "float32"
# Numbers in the rows of a case of small classes: enough to fill the device and overflow its cache.
_NUMBERS = 2**25

# Cases that have a target of their own (`bench.gpu.targets`), or a prediction.
BYTES, MIXED, COMPUTE = (IntraClass(BF16, c=c) for c in (1000, 100, 10))
MARGIN = CrossEntropy(BF16)
MILLION = IntraClass(BF16, n=2**20, c=10000)
SHORT = [IntraClass(BF16, n=1024, d=512, c=100), IntraClass(BF16, n=1024, d=128, c=10)]
LAYOUT = ClassLayout(FP32)
BATCH = IntraClass(BF16, n=8192, d=128, c=100)
SUPERVISED = SupervisedContrastive(BF16)
SMALL_CLASSES = [
    IntraClass(BF16, n=_NUMBERS // d, d=d, c=_NUMBERS // d // size)
    for d in (512, 128, 1024, 256)
    for size in (64, 8, 128, 32)
]

_HEAD: list[Case] = [
    BYTES,
    MIXED,
    COMPUTE,
    MARGIN,
    *SHORT,
    LAYOUT,
    KdKl(BF16),
    BATCH,
    MILLION,
    Relational(BF16, "distance"),
    MemoryPush(BF16),
    SUPERVISED,
]
_OTHERS: list[Case] = [
    CrossEntropy(BF16, n=8192, c=32768),
    CrossEntropy(BF16, n=1024, c=262144),
    Relational(BF16, "angle", n=512),
    IntraClass(BF16, n=4096, slots=64000),
    IntraClass(BF16, c=100, active=0.3),
    IntraClass(BF16, shape="skewed"),
    IntraClass(FP32, c=100),
    IntraClass(FP16, c=100),
    IntraClass(FP32),
    CrossEntropy(FP32),
    CrossEntropy(BF16, n=262144, c=100),
    KdKl(BF16, n=8192, c=32768),
    KdKl(BF16, standardize=True),
    IntraClass(BF16, n=16384, d=128, c=100, shape="half"),
    SupervisedContrastive(BF16, n=65536, d=512, c=1000),
]
# Whatever has a target, and a case of each family: what is measured before any peer is.
TARGETS: list[Case] = [*_HEAD, *SMALL_CLASSES]
SPEED: list[Case] = [*_HEAD, *SMALL_CLASSES[:4], *_OTHERS, *SMALL_CLASSES[4:]]


def _accuracy(dtype: str) -> Iterable[Case]:
    yield IntraClass(dtype, n=4099, d=512, c=61, active=0.7)
    yield IntraClass(dtype, n=2003, d=192, c=3, shape="skewed", active=0.5)
    yield IntraClass(dtype, n=1021, d=77, c=500, active=0.7)
    yield IntraClass(dtype, n=1500, d=128, c=20, slots=777, active=0.7)
    yield IntraClass(dtype, n=700, d=96, c=9, temperature=0.02)
    yield IntraClass(dtype, n=700, d=96, c=9, normalize=False)
    yield IntraClass(dtype, n=513, d=2048, c=4)
    yield SupervisedContrastive(dtype, n=1021, d=96, c=61)
    yield CrossEntropy(dtype, n=999, c=1000)
    yield CrossEntropy(dtype, n=61, c=50257)
    yield CrossEntropy(dtype, n=5, c=262144)
    yield KdKl(dtype, n=999, c=100)
    yield KdKl(dtype, n=61, c=50257, standardize=True)
    yield Relational(dtype, "distance", n=301, d=129)
    yield Relational(dtype, "angle", n=67, d=129)


ACCURACY: list[Case] = [*(case for dtype in (BF16, FP16, FP32) for case in _accuracy(dtype)), MemoryPush(BF16)]


def tiny(cases: Iterable[Case]) -> list[Case]:
    """The same cases in sizes for Triton's interpreter, each once."""
    return list(dict.fromkeys(case.tiny() for case in cases))
