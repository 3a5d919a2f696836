"""The whole-class kernel in the emulator: against the definition, in every mode, and what it must leave alone.

Compiled for sm_90 it multiplies by wgmma, but by mma in tiles of 32 and 96 rows and for float32; for sm_80 (and sm_100)
by mma.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from icckd import reference
from icckd.kernels.layout import Layout, sorted_layout
from tests.csrc import emulator
from tests.problems import with_gradients

SHARED = 227 << 10
FORMATS = [torch.bfloat16, torch.float16, torch.float32]


@dataclass
class Outputs:
    """What the kernel writes, by row; None if not asked for."""

    losses: Tensor | None = None
    lse: Tensor | None = None
    d_anchor: Tensor | None = None
    d_positive: Tensor | None = None
    d_kappa: Tensor | None = None

    def present(self) -> dict[str, Tensor]:
        return {name: x for name, x in vars(self).items() if x is not None}

    def assert_same_bits(self, other: "Outputs") -> None:
        for name in self.present().keys() & other.present().keys():
            integers = torch.int32 if getattr(self, name).dtype == torch.float32 else torch.int16
            x, y = (getattr(outputs, name).view(integers) for outputs in (self, other))
            assert torch.equal(x, y), name


ALL = ("losses", "lse", "d_anchor", "d_positive", "d_kappa")
LOSSES, GRADIENTS = ALL[:2], ALL[2:]


@dataclass
class Problem:
    """A batch. Rows of classes of more than `limit` rows, and rows without a label, are others'."""

    anchor: Tensor
    positive: Tensor
    labels: Tensor
    gate: Tensor
    temperature: float = 0.1
    normalize: bool = True
    weighted: bool = True  # else every row has weight 1, and the kernel is not told
    scale: Tensor | None = None
    upstream: Tensor | None = None
    limit: int = 32

    def layout(self) -> Layout:
        return sorted_layout(self.labels, self.weight(), self.labels.new_empty(0), None, self.limit)

    def weight(self) -> Tensor:
        return torch.where(self.labels >= 0, self.gate if self.weighted else torch.ones(()), 0)

    def served(self) -> Tensor:
        """Which rows the kernel computes."""
        size = (self.labels[:, None] == self.labels).sum(1)
        return (self.labels >= 0) & (size <= self.limit)


def problem(sizes, dim, dtype=torch.float32, seed=0, ignored=3, **options):
    """Classes of these sizes and some rows without a class, in random order; a gate with zeros."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)] + [torch.full((ignored,), -1)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    count = len(labels)
    anchor = torch.randn(count, dim, generator=generator)
    positive = anchor + 0.7 * torch.randn(count, dim, generator=generator)
    gate = torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) < 0.7)
    return Problem(anchor.to(dtype), positive.to(dtype), labels, gate, **options)


def run(p, architecture, timing="late", outputs=ALL, blocks=3, padding=0, offset=0, exact=True, shared=SHARED):
    """The kernel's outputs. padding: poison between rows. offset: elements before the first row, which misalign it."""
    dtype, (count, dim) = p.anchor.dtype, p.anchor.shape
    stride = dim + padding

    def between_poison(x, unread):
        buffer = torch.full((offset + count * stride,), torch.nan, dtype=dtype)
        buffer[offset:].view(count, stride)[:, :dim] = torch.where(unread[:, None], torch.nan, x)
        return buffer[: len(buffer) - padding].clone()

    result = Outputs()
    for name in outputs:
        shape = (count, dim) if name in ("d_anchor", "d_positive") else (count,)
        number_format = dtype if name in ("d_anchor", "d_positive") else torch.float32
        setattr(result, name, torch.full(shape, torch.nan, dtype=number_format))
    layout, unread = p.layout(), ~p.served()
    kernel = getattr(emulator.load("whole_class", architecture), f"whole_class_{str(dtype).removeprefix('torch.')}")
    kernel(
        between_poison(p.anchor, unread), between_poison(p.positive, unread | (p.weight() == 0)), offset, stride,
        stride, dim, p.weight() if p.weighted else None, p.scale, p.upstream, torch.tensor(p.temperature), layout.order,
        layout.rank, layout.start, layout.size, layout.active, layout.totals, p.limit, shared, blocks, p.normalize,
        exact, *vars(result).values(), timing,
    )  # fmt: skip
    for name, x in result.present().items():
        assert x[unread].isnan().all(), f"{name} of rows that are others' was written"
    return result


def expected(p, dtype):
    """The definition's outputs in a number format, as far as served rows go; others are 0."""
    served = p.served()
    labels = torch.where(served, p.labels, -1)
    anchor, positive = (torch.where(served[:, None], x, 0).to(dtype) for x in (p.anchor, p.positive))
    gate = p.weight() if p.scale is None else p.weight() * p.scale
    options = {"gate": gate.to(torch.promote_types(dtype, torch.float32)), "normalize": p.normalize}
    upstream = torch.ones(len(labels)) if p.upstream is None else p.upstream
    losses, d_anchor, d_positive, d_temperature = with_gradients(
        reference.intra_class_contrastive, anchor, positive, labels, p.temperature,
        upstream=upstream.to(options["gate"]), reduction="none", **options,
    )  # fmt: skip
    return losses, d_anchor, d_positive, d_temperature


def log_sum_exp(p):
    """lse in float64, 0 of rows that are no anchors."""
    z, x = p.anchor.double(), p.positive.double()
    if p.normalize:
        z, x = (y / y.norm(dim=1, keepdim=True).clamp(min=1e-30) for y in (z, x))
    pair = (p.labels[:, None] == p.labels) & ~torch.eye(len(z), dtype=torch.bool)
    logits = torch.cat([(z * x).sum(1, keepdim=True), (z @ z.T).masked_fill(~pair, -torch.inf)], 1) / p.temperature
    return torch.where(p.weight() > 0, logits.logsumexp(1), 0)


def assert_exact(p, result):
    """Errors are at most twice those of PyTorch in the same precision, or rounding, as tests/problems.py has it."""
    served = p.served()
    for x, plain, truth, name in zip(
        (result.losses, result.d_anchor, result.d_positive, result.d_kappa),
        expected(p, p.anchor.dtype),
        expected(p, torch.float64),
        ("losses", "d_anchor", "d_positive", "d_kappa"),
        strict=True,
    ):
        if x is None:
            continue
        if name == "d_kappa":
            x, plain, truth = (-x[served].sum() / p.temperature**2)[None], plain[None], truth[None]
        else:
            x, plain, truth = x[served], plain[served], truth[served]
        assert_close(x, plain, truth, p.temperature, name)
    if result.lse is not None:
        truth = log_sum_exp(p)[served]
        assert_close(result.lse[served], truth.float(), truth, p.temperature, "lse")


def assert_close(x, plain, truth, temperature, name):
    if x.numel() == 0:
        return
    error, budget = ((y.double() - truth).abs().max() for y in (x, plain))
    rounding = 4 * torch.finfo(x.dtype).eps + 1.2e-7 * max(1, 1 / temperature)
    assert error <= 2 * budget + rounding * truth.abs().max() + 1e-7, f"{name}: {error:.3e}, PyTorch's {budget:.3e}"


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("limit", [32, 64])
def test_is_the_definition(architecture, timing, dtype, limit):
    p = problem([limit, 17, 9, 9, 2, 1, 1], 72, dtype, limit=limit)
    assert_exact(p, run(p, architecture, timing))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(("limit", "dim"), [(96, 136), (128, 136), (96, 300)])
def test_large_tiles(architecture, dtype, limit, dim):
    p = problem([limit, 80, 50, 3], dim, dtype, limit=limit)
    assert_exact(p, run(p, architecture))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(
    ("sizes", "ignored"),
    [([1], 0), ([2], 0), ([], 4), ([1] * 70, 5), ([32], 0), ([32] * 4, 1), ([31, 2] * 3, 0), ([16] * 9, 0)],
    ids=str,
)
def test_sizes(architecture, dtype, sizes, ignored):
    p = problem(sizes, 40, dtype, ignored=ignored)
    assert_exact(p, run(p, architecture))


def test_classes_beyond_the_limit_are_left_alone(architecture, timing):
    p = problem([300, 65, 33, 32, 32, 5, 1], 24)
    assert p.served().sum() == 70
    assert_exact(p, run(p, architecture, timing))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("dim", [1, 3, 8, 37, 64, 65, 130])
def test_row_lengths(architecture, dtype, dim):
    # The direction of a single number has no gradient, and its errors no measure.
    p = problem([20, 12, 7], dim, dtype, normalize=dim > 1, temperature=0.1 if dim > 1 else 1.0)
    assert_exact(p, run(p, architecture, blocks=2))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(("padding", "offset"), [(8, 0), (16, 8), (3, 0), (0, 1), (5, 3)])
def test_strides_and_misaligned_rows(architecture, timing, dtype, padding, offset):
    p = problem([20, 12, 7, 7], 40, dtype)
    run(p, architecture).assert_same_bits(run(p, architecture, timing, padding=padding, offset=offset))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("limit", [32, 64])
def test_every_output_alone_is_the_same(architecture, dtype, limit):
    p = problem([limit, 12, 7], 72, dtype, limit=limit)
    everything = run(p, architecture)
    for outputs in (LOSSES, *((name,) for name in GRADIENTS), GRADIENTS[:2]):
        everything.assert_same_bits(run(p, architecture, outputs=outputs))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("limit", [32, 64])
def test_backward_of_rows(architecture, timing, dtype, limit):
    upstream = torch.randn(limit + 29 + 3, generator=torch.Generator().manual_seed(1))
    p = problem([limit, 20, 8, 1], 72, dtype, limit=limit, upstream=upstream)
    assert_exact(p, run(p, architecture, timing, GRADIENTS))


@pytest.mark.parametrize("weighted", [True, False])
def test_a_scale_of_all_and_no_weights(architecture, weighted):
    p = problem([32, 20, 8, 1], 24, scale=torch.tensor([1 / 61]), weighted=weighted)
    assert_exact(p, run(p, architecture))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_without_normalisation(architecture, dtype, temperature):
    p = problem([32, 20, 8, 1], 24, dtype, temperature=temperature, normalize=False)
    assert_exact(p, run(p, architecture))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("temperature", [0.005, 0.02, 1.0, 50.0])
def test_temperatures(architecture, dtype, temperature):
    p = problem([32, 20, 8, 1], 24, dtype, temperature=temperature)
    first, second, third = (p.labels == 1).nonzero().flatten()[:3]
    # Pairs that agree wholly and that oppose each other wholly, as positives and as negatives.
    p.anchor[second], p.anchor[third], p.positive[first], p.positive[second] = (
        p.anchor[first], -p.anchor[first], p.anchor[first], p.anchor[third],
    )  # fmt: skip
    assert_exact(p, run(p, architecture))


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
@pytest.mark.parametrize("normalize", [True, False])
def test_extreme_temperatures_stay_finite(architecture, temperature, normalize):
    p = problem([32, 20, 8, 1], 24, temperature=temperature, normalize=normalize)
    for x in run(p, architecture).present().values():
        assert x[p.served()].isfinite().all()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(("temperature", "weight"), [(0.0116, 1e-3), (0.025, 1e4), (1e9, 1.0)])
def test_opposite_rows_stay_finite(architecture, dtype, temperature, weight):
    p = problem([32, 20, 8, 1], 24, dtype, temperature=temperature, upstream=torch.full((64,), 300.0))
    p.anchor = p.anchor[:1] * torch.where(torch.arange(64) % 2 == 0, 1, -1)[:, None]
    p.positive, p.gate = p.anchor.clone(), p.gate * weight
    for x in run(p, architecture).present().values():
        assert x[p.served()].isfinite().all()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_gates(architecture, dtype, gate):
    p = problem([32, 20, 8, 1], 40, dtype)
    p.gate.fill_(gate)
    result = run(p, architecture)
    assert_exact(p, result)
    if gate == 0:
        assert not any(x[p.served()].any() for x in result.present().values())


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_zero_rows(architecture, dtype):
    p = problem([32, 20, 8, 1], 40, dtype)
    p.gate.fill_(0.5)
    p.anchor[::5], p.positive[::7] = 0, 0
    result = run(p, architecture)
    assert_exact(p, result)
    served = p.served()
    assert not result.d_anchor[::5][served[::5]].any()
    assert not result.d_positive[::7][served[::7]].any()


# float16 has no number between 0 and 6e-8, so that the smaller rows are a few bits each.
@pytest.mark.parametrize(
    ("dtype", "lowest", "highest"), [(dtype, -6, 3) for dtype in FORMATS] + [(dtype, -15, 16) for dtype in FORMATS[::2]]
)
def test_rows_of_very_different_norms(architecture, dtype, lowest, highest):
    p = problem([32, 20, 8, 1], 40, dtype)
    norms = torch.logspace(lowest, highest, len(p.labels))[
        torch.randperm(len(p.labels), generator=torch.Generator().manual_seed(0))
    ]
    p = replace(p, anchor=(p.anchor.float() * norms[:, None]).to(dtype))
    result = run(p, architecture)
    for x, plain, truth in zip(
        (result.losses, result.d_anchor, result.d_positive),
        expected(p, dtype),
        expected(p, torch.float64),
        strict=False,
    ):
        # Gradients scale with 1/norm: each row by itself.
        error, budget, largest = (
            y.double().abs().reshape(len(truth), -1).amax(1) for y in (x - truth, plain - truth, truth)
        )
        rounding = 4 * torch.finfo(x.dtype).eps + 1.2e-7 / p.temperature
        tolerance = 2 * budget + rounding * largest + torch.finfo(x.dtype).smallest_normal + 2e-6
        overflow = largest > torch.finfo(x.dtype).max
        assert (overflow | ~p.served() | (error <= tolerance)).all()


@pytest.mark.parametrize("limit", [32, 64])
def test_not_a_number_stays_in_its_tile(architecture, limit):
    p = problem([limit, limit, 3, 3], 72, torch.bfloat16, limit=limit)
    clean = run(p, architecture, blocks=1)
    p.anchor[(p.labels == 0) | (p.labels == 1)] = torch.nan
    result = run(p, architecture, blocks=1)
    rest = p.labels >= 2
    for name, x in result.present().items():
        assert torch.equal(x[rest], getattr(clean, name)[rest]), name
        assert x[(p.labels == 0) & (p.gate > 0)].isnan().all(), name


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("limit", [32, 64])
def test_same_bits_whatever_the_timing(architecture, dtype, limit):
    p = problem([limit, limit, 30, 20, 20, 9, 3], 72, dtype, limit=limit)
    run(p, architecture, "late").assert_same_bits(run(p, architecture, "early"))


def test_one_tf32_product_where_it_is_allowed(architecture):
    p = problem([32, 20, 8, 1], 40)
    truth = expected(p, torch.float64)[1]
    three, one = (
        (run(p, architecture, exact=exact).d_anchor - truth)[p.served()].abs().max() for exact in (True, False)
    )
    assert three < 1e-5 < one < 1e-2


def test_rows_beyond_32_bits(architecture):
    """Rows so far apart that their offsets do not fit into 32 bits; nothing between them is touched."""
    p = problem([12, 8, 3], 16, torch.bfloat16)
    count, stride = len(p.labels), 1 << 27
    buffers = []
    for x in (p.anchor, p.positive):
        buffer = torch.empty((count - 1) * stride + 16, dtype=x.dtype)
        buffer.as_strided((count, 16), (stride, 1)).copy_(x)
        buffers.append(buffer)
    layout, close = p.layout(), run(p, architecture)
    far = Outputs(*(torch.full_like(x, torch.nan) for x in close.present().values()))
    emulator.load("whole_class", architecture).whole_class_bfloat16(
        *buffers, 0, stride, stride, 16, p.weight(), None, None, torch.tensor(p.temperature), layout.order, layout.rank,
        layout.start, layout.size, layout.active, layout.totals, 32, SHARED, 3, True, True, *vars(far).values(), "late",
    )  # fmt: skip
    far.assert_same_bits(close)


# --- the schedule and the plan ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index_logic():
    if (reason := emulator.why_unavailable()) is not None:
        pytest.skip(f"no emulator: {reason}")
    return emulator.load("whole_class", "sm_90")


@given(
    sizes=st.lists(st.integers(1, 64), max_size=60),
    larger=st.lists(st.integers(65, 200), max_size=3),
    empty=st.integers(0, 3),
    blocks=st.integers(1, 70),
)
def test_every_class_is_in_one_tile(index_logic, sizes, larger, empty, blocks):
    sizes, larger = sorted(sizes, reverse=True), sorted(larger, reverse=True)
    every = larger + sizes + [0] * empty
    begins = torch.tensor([0, *every]).cumsum(0).tolist()
    rank = [r for r, n in enumerate(every) for _ in range(n)]
    first, labelled = sum(larger), sum(every)
    tiles = index_logic.tiles(rank, begins[:-1], every, first, labelled, 64, blocks)
    assert not tiles or tiles[0][1] == first
    assert all(a[2] == b[1] and a[0] <= b[0] for a, b in pairwise(tiles))
    assert not sizes or tiles[-1][2] == labelled
    starts = set(begins[len(larger) :])
    for block, begin, end in tiles:
        assert 0 <= block < blocks
        assert {begin, end} <= starts
        assert end - begin <= 64
    for a, b in pairwise(tiles):
        if a[0] == b[0]:
            # Another class would not have fitted.
            assert a[2] - a[1] + every[rank[b[1]]] > 64
    for block in range(blocks):
        rows = sum(end - begin for owner, begin, end in tiles if owner == block)
        assert rows <= (labelled - first) / blocks + max(sizes, default=0)


@given(
    dim=st.integers(1, 3000),
    element_bytes=st.sampled_from([2, 4]),
    shared_limit=st.sampled_from([99 << 10, 163 << 10, SHARED]),
    expected_rows=st.integers(0, 300),
)
def test_the_plan_fits(index_logic, dim, element_bytes, shared_limit, expected_rows):
    rows = index_logic.tile_rows_for(dim, element_bytes, shared_limit, expected_rows)
    largest = index_logic.tile_rows_for(dim, element_bytes, shared_limit, 0)
    assert rows <= largest
    assert rows == largest or rows - expected_rows >= 3.5 * expected_rows**0.5
    if rows == 0:
        assert index_logic.plan(32, dim, element_bytes, shared_limit) == []
        return
    numbers, bounce, operand, end = index_logic.plan(rows, dim, element_bytes, shared_limit)
    assert 0 < numbers <= bounce < operand < end <= shared_limit
    assert operand % 1024 == bounce % 16 == 0
    assert operand - bounce >= rows // 16 * 8 * 32 * 4
    assert end - operand >= rows * dim * element_bytes


@pytest.mark.parametrize(
    ("dim", "element_bytes", "shared_limit", "expected_rows", "rows"),
    [
        (512, 2, SHARED, 0, 128),
        (512, 2, SHARED, 66, 96),
        (512, 2, SHARED, 68, 128),
        (512, 2, SHARED, 41, 64),
        (512, 2, SHARED, 8, 32),
        (512, 2, 163 << 10, 66, 96),
        (1024, 2, SHARED, 66, 96),
        (1024, 4, SHARED, 66, 32),
        (1024, 4, 163 << 10, 66, 32),
        (2048, 4, 163 << 10, 66, 0),
        (4096, 2, SHARED, 8, 0),
        (0, 2, SHARED, 8, 0),
        (2**31 - 1, 4, SHARED, 8, 0),
    ],
)
def test_tiles_of_usual_shapes(index_logic, dim, element_bytes, shared_limit, expected_rows, rows):
    assert index_logic.tile_rows_for(dim, element_bytes, shared_limit, expected_rows) == rows
