"""The CUDA kernel of cross-entropy with margin, run by the emulator, against PyTorch and the definition in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from icckd import reference
from tests.csrc import emulator
from tests.csrc.emulator.rows import LAYOUTS, SHARED_LIMITS, laid_out, memory_of, name_of, unwritten
from tests.problems import assert_as_accurate

# Teams of every size, chunks that are aligned and that are not, rows that fill a team and that do not.
SIZES = [
    (1, 1), (13, 1), (70, 2), (5, 3), (140, 10), (40, 31), (40, 32), (40, 33), (20, 100), (9, 127), (9, 128), (3, 1000),
    (5, 1024), (2, 1032), (2, 5003), (2, 5008), (1, 20011),
]  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPACES = ["probability", "logit"]
IGNORED = -100


@pytest.fixture(scope="module")
def kernels():
    if (reason := emulator.why_unavailable()) is not None:
        pytest.skip(f"no emulator: {reason}")
    return emulator.load("cross_entropy", "sm_80")


@pytest.fixture
def run(kernels):
    """The kernel as a function of tensors: (weighted) rows, margin, lse, gradient."""

    def run(logits, labels, weight=None, label_smoothing=0.0, space="probability", ignore_index=IGNORED,
            gradient=True, shared_limit=SHARED_LIMITS[0], timing="late"):  # fmt: skip
        count, classes = logits.shape
        rows, margin, lse = unwritten(count), unwritten(count), unwritten(count)
        d_logits = unwritten(count, classes, dtype=logits.dtype) if gradient else None
        getattr(kernels, name_of(logits.dtype))(
            memory_of(logits), logits.storage_offset(), count, classes, *logits.stride(), labels, ignore_index,
            label_smoothing, space == "probability", weight, rows, margin, lse, d_logits, shared_limit, timing,
        )  # fmt: skip
        return rows, margin, lse, d_logits

    return run


def make(generator, rows, classes, dtype=torch.float32, ignored=True):
    logits = (3 * torch.randn(rows, classes, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    if ignored and rows > 2:
        labels[1] = IGNORED
    return logits, labels


def in_pytorch(logits, labels, weight, label_smoothing=0.0):
    """Weighted rows and the gradient of their sum, in the logits' precision."""
    x = logits.detach().requires_grad_()
    rows = F.cross_entropy(
        x if x.dtype == torch.float64 else x.float(),
        labels,
        reduction="none",
        label_smoothing=label_smoothing,
        ignore_index=IGNORED,
    )
    rows = rows * weight
    (gradient,) = torch.autograd.grad(rows.sum(), x)
    return rows.detach(), gradient


def assert_same(actual, expected):
    """The same bits; NaN where NaN is."""
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shared_limit", SHARED_LIMITS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_is_as_accurate_as_pytorch(run, generator, rows, classes, dtype, label_smoothing, shared_limit):
    logits, labels = make(generator, rows, classes, dtype)
    weight = torch.randn(rows, generator=generator)
    space = SPACES[rows % 2]
    options = {"space": space, "shared_limit": shared_limit}
    losses, margin, lse, gradient = run(logits, labels, weight, label_smoothing, **options)
    exact_losses, exact_gradient = in_pytorch(logits.double(), labels, weight.double(), label_smoothing)
    single_losses, single_gradient = in_pytorch(logits, labels, weight, label_smoothing)
    assert_as_accurate(losses, single_losses, exact_losses, 1e-6 * float(exact_losses.abs().max()) + 1e-7)
    assert_as_accurate(gradient, single_gradient, exact_gradient, 1e-6 * float(exact_gradient.abs().max()) + 1e-7)
    exact_margin = reference.classification_margin(logits.double(), labels, space=space)
    torch.testing.assert_close(margin, exact_margin, rtol=1e-6, atol=1e-6)
    counted, x = labels != IGNORED, logits.double()
    exact_lse = torch.where(counted, x.logsumexp(1) - x.amax(1), 0)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(20, 24), (9, 1000), (9, 1003), (2, 5008)])
def test_without_a_gradient_or_weights(run, generator, rows, classes, dtype):
    logits, labels = make(generator, rows, classes, dtype)
    expected = run(logits, labels, torch.ones(rows))
    assert_same(run(logits, labels), expected)
    assert_same(run(logits, labels, gradient=False)[:3], expected[:3])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(24, 19), (40, 32), (6, 1000), (2, 3000)])
def test_any_strides_give_the_same_bits(run, generator, rows, classes, dtype, layout):
    logits, labels = make(generator, rows, classes, dtype)
    weight = torch.randn(rows, generator=generator)
    dense = (logits[:1].expand(rows, classes) if layout == "expanded" else logits).contiguous()
    for shared_limit in SHARED_LIMITS:
        options = {"label_smoothing": 0.1, "shared_limit": shared_limit}
        assert_same(run(laid_out(logits, layout), labels, weight, **options), run(dense, labels, weight, **options))


def test_offsets_beyond_32_bits(run, generator):
    logits, labels = make(generator, 2, 40, torch.bfloat16)
    far = torch.empty((1 << 31) + 40, dtype=torch.bfloat16).as_strided((2, 40), (1 << 31, 1)).copy_(logits)
    assert_same(run(far, labels), run(logits, labels))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("classes", [2, 7, 16, 33, 64, 65, 150])
def test_label_in_every_place(run, generator, classes, space):
    logits, labels = torch.randn(classes, classes, generator=generator), torch.arange(classes)
    weight = torch.rand(classes, generator=generator)
    losses, margin, _, gradient = run(logits, labels, weight, 0.2, space)
    exact_losses, exact_gradient = in_pytorch(logits.double(), labels, weight.double(), 0.2)
    exact_margin = reference.classification_margin(logits.double(), labels, space=space)
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(margin, exact_margin, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("classes", [9, 32, 1000, 2100])
def test_ignored_rows_are_not_looked_at(run, generator, classes):
    logits, labels = make(generator, 6, classes)
    logits[1] = torch.nan
    losses, margin, lse, gradient = run(logits, labels, None, 0.1)
    assert (losses[1], margin[1], lse[1]) == (0, -torch.inf, 0)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[1].eq(0).all()
    everything = run(logits, torch.full_like(labels, 7), ignore_index=7)
    assert_same(everything, (torch.zeros(6), torch.full((6,), -torch.inf), torch.zeros(6), torch.zeros(6, classes)))


def test_ignore_index_may_be_a_class(run, generator):
    logits, labels = make(generator, 30, 5, ignored=False)
    expected = run(logits, torch.where(labels == 3, IGNORED, labels))
    assert_same(run(logits, labels, ignore_index=3), expected)


@pytest.mark.parametrize("classes", [5, 32, 1000, 2100])
@pytest.mark.parametrize("label", [-1, 2100, 2**32, 2**40, -(2**63)])
def test_label_that_names_no_class_makes_its_row_nan(run, generator, classes, label):
    logits, labels = make(generator, 5, classes)
    labels[3] = label
    for space in SPACES:
        for label_smoothing in (0.0, 0.1):
            losses, margin, _, gradient = run(logits, labels, None, label_smoothing, space)
            for result in (losses, margin, gradient[:, 0], gradient[:, -1]):
                assert result.isnan().tolist() == [False, False, False, True, False]


def test_margin_of_ties_and_of_a_single_class(run):
    logits = torch.tensor([[2.0, 2.0, 0.0], [2.0, 5.0, 5.0], [5.0, 0.0, 5.0]])
    assert run(logits, torch.tensor([0, 1, 1]), space="logit")[1].tolist() == [0, 0, -5]
    one, zero = torch.randn(3, 1), torch.zeros(3, dtype=torch.int64)
    assert run(one, zero)[1].tolist() == [1, 1, 1]
    assert run(one, zero, space="logit")[1].tolist() == [torch.inf] * 3


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("classes", [23, 32, 1100])
def test_masked_classes(run, generator, classes, space, label_smoothing):
    """Logits of −∞: finite wherever PyTorch is finite, infinite or NaN where it is."""
    logits, labels = make(generator, 12, classes, ignored=False)
    masked = torch.rand(logits.shape, generator=generator) < 0.4
    masked[2:, 8:20] = True
    masked[5, : classes - 1] = True
    masked[5, -1] = False
    logits = logits.masked_fill(masked, -torch.inf)
    labels[0] = int(masked[0].float().argmax())
    labels[1] = int(masked[1].float().argmin())
    logits[3] = -torch.inf
    logits[4] = -torch.inf
    logits[4, labels[4]] = 1.0
    weight = torch.rand(12, generator=generator)
    losses, margin, _, gradient = run(logits, labels, weight, label_smoothing, space)
    exact_losses, exact_gradient = in_pytorch(logits.double(), labels, weight.double(), label_smoothing)
    expected_margin = reference.classification_margin(logits, labels, space=space)
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-5, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-7, equal_nan=True)
    torch.testing.assert_close(margin, expected_margin, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("classes", [33, 90, 1100])
def test_divergence_stays_visible(run, generator, classes, poison, space):
    logits, labels = make(generator, 5, classes, ignored=False)
    labels[2], labels[3] = 0, 30
    logits[2, 30] = logits[3, 30] = poison
    logits[4, 1], logits[4, 30], labels[4] = torch.nan, torch.inf, 0
    losses, margin, _, gradient = run(logits, labels, space=space)
    assert losses.isnan().tolist() == [False, False, True, True, True]
    assert gradient[2:].isnan().all()
    assert gradient[:2].isfinite().all()
    expected = reference.classification_margin(logits, labels, space=space)
    torch.testing.assert_close(margin, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("classes", [40, 100, 1100])
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits(run, generator, classes, scale):
    logits, labels = make(generator, 7, classes)
    weight = torch.rand(7, generator=generator)
    losses, _, _, gradient = run(logits * scale, labels, weight, 0.1)
    exact_losses, exact_gradient = in_pytorch((logits * scale).double(), labels, weight.double(), 0.1)
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [40, 1100])
def test_close_huge_logits_keep_their_differences(run, generator, classes, label_smoothing):
    """Sums must be kept relative to a logit of the row: at 8192 float32 resolves only 1e-3."""
    logits, labels = make(generator, 11, classes)
    logits = (logits * 1024).round() / 1024 + 8192
    weight = torch.rand(11, generator=generator)
    losses, _, _, gradient = run(logits, labels, weight, label_smoothing)
    exact_losses, exact_gradient = in_pytorch(logits.double(), labels, weight.double(), label_smoothing)
    torch.testing.assert_close(losses.double(), exact_losses, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shared_limit", SHARED_LIMITS)
@pytest.mark.parametrize(("rows", "classes"), [(300, 7), (70, 32), (101, 133), (20, 1000), (5, 2048), (5, 2100)])
def test_same_bits_in_whatever_order_threads_run(run, generator, rows, classes, shared_limit):
    logits, labels = make(generator, rows, classes, torch.bfloat16)
    late, early = (
        run(logits, labels, None, 0.1, shared_limit=shared_limit, timing=timing) for timing in emulator.TIMINGS
    )
    assert_same(late, early)


@given(
    st.integers(1, 2**30), st.sampled_from([(4, 16), (8, 16), (4, 32), (4, 24), (8, 32)]), st.booleans(),
    st.sampled_from([256, 512]), st.sampled_from([4096, 49152, 101376, 166912, 232448]),
)  # fmt: skip
def test_plan(kernels, classes, chunk, keep, most_threads, shared_limit):
    """Every class has a place, and a block asks for no more than there is."""
    width, chunk_bytes = chunk
    planned, chunks, slots, team, threads, rows, shared_bytes = kernels.plan(
        classes, width, chunk_bytes, keep, most_threads, shared_limit
    )
    assert planned == classes
    assert (chunks - 1) * width < classes <= chunks * width
    assert team == threads or (team <= 32 and 32 % team == 0)
    assert rows * team == threads <= (128 if team <= 32 else 2 * most_threads)
    assert threads % 32 == 0
    assert 0 <= shared_bytes <= shared_limit
    assert slots % 2 == 0
    assert rows * slots * chunk_bytes <= shared_bytes
    assert slots == 0 if not keep else slots >= chunks or shared_limit - shared_bytes < 2 * rows * chunk_bytes
