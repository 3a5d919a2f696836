"""`ClassMemory` against queues kept in plain Python."""

from collections import deque

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from icckd import ClassMemory, TeacherLoss
from icckd.memory import memory_bytes

FLOAT8 = torch.float8_e4m3fn
# What e4m3 holds from 0 up: 4 significant bits from 2⁻⁶ on, multiples of 2⁻⁹ below, 448 at most.
CODES = [n * 2.0**-9 for n in range(8)] + [(8 + n) * 2.0 ** (e - 3) for e in range(-6, 9) for n in range(8)]
CODES = torch.tensor([code for code in CODES if code <= 448], dtype=torch.float64)


def in_float8(row):
    """A row of floats as float8 should keep it, and its scale: the nearest codes times a power of two, in float64."""
    largest = max(abs(x) for x in row)
    scale = 2.0**-124
    while largest > 448 * scale:
        scale *= 2
    distances = (torch.tensor(row, dtype=torch.float64).abs()[:, None] / scale - CODES).abs()
    kept = CODES[distances.argmin(1)] * scale
    return kept.copysign(torch.tensor(row, dtype=torch.float64)), scale


def contents(memory):
    """What the memory holds: per class, the set of its embeddings' first numbers."""
    rows, labels = memory.tensors()
    return [sorted(rows[labels == c, 0].tolist()) for c in range(memory.num_classes)]


@pytest.mark.parametrize(("capacity", "dtype"), [(1, FLOAT8), (1, torch.float32), (3, torch.float32), (8, FLOAT8)])
def test_holds_the_most_recent_rows_of_every_class(generator, capacity, dtype):
    memory = ClassMemory(num_classes=4, capacity=capacity, dim=2, dtype=dtype)
    queues = [deque(maxlen=capacity) for _ in range(4)]
    number = 0
    for count in (1, 0, 5, 17, 2, 40, 3):
        labels = torch.randint(-2, 4, (count,), generator=generator)
        # Integers times powers of two that every dtype holds.
        numbers = torch.arange(number, number + count, dtype=torch.float32)
        features = ((1 + numbers % 8) * 2 ** (numbers // 8))[:, None].expand(count, 2)
        number += count
        memory.push(features, labels)
        for feature, label in zip(features[:, 0].tolist(), labels.tolist(), strict=True):
            if label >= 0:
                queues[label].append(feature)
        assert contents(memory) == [sorted(queue) for queue in queues]
        assert len(memory) == sum(map(len, queues))


def test_tensors_mark_empty_slots():
    memory = ClassMemory(3, 2, 4)
    rows, labels = memory.tensors()
    assert rows.shape == (6, 4)
    assert labels.tolist() == [-1] * 6
    memory.push(torch.ones(3, 4), torch.tensor([1, 1, 2]))
    rows, labels = memory.tensors()
    assert labels.tolist() == [-1, -1, 1, 1, 2, -1]
    assert rows[:, 0].tolist() == [0, 0, 1, 1, 1, 0]
    memory.reset()
    assert len(memory) == 0
    assert not memory.tensors()[0].any()


def test_stores_detached_embeddings_in_its_own_dtype():
    memory = ClassMemory(2, 2, 3, dtype=torch.bfloat16)
    features = torch.randn(2, 3, requires_grad=True)
    memory.push(features, torch.tensor([0, 1], dtype=torch.int32))
    rows, _ = memory.tensors()
    assert rows.dtype == torch.bfloat16
    assert not rows.requires_grad
    assert torch.equal(rows[0], features[0].bfloat16())


@pytest.mark.parametrize("magnitude", [1e-38, 1e-12, 1.0, 1e38])
def test_float8_keeps_the_nearest_codes_times_a_power_of_two_of_each_row(generator, magnitude):
    memory = ClassMemory(3, 5, 40, dtype=FLOAT8)
    # Rows and numbers in them of many sizes, down to where codes are multiples of the smallest.
    sizes = 2.0 ** torch.randint(-4, 1, (12, 1), generator=generator)
    features = magnitude * (sizes * (torch.randn(12, 40, generator=generator) / 3).clamp(-1, 1).pow(5))
    features[3, 7] = 0
    memory.push(features, torch.arange(12) % 3)
    rows, labels = memory.tensors()
    assert rows.dtype == torch.bfloat16
    read = {(label, n): rows[labels == label][n] for label in range(3) for n in range(4)}
    for i, row in enumerate(features.tolist()):
        expected, scale = in_float8(row)
        actual = read[i % 3, i // 3].double()
        error = (actual - torch.tensor(row, dtype=torch.float64)).abs()
        magnitudes = features[i].double().abs()
        assert (error <= torch.where(magnitudes >= 2.0**-6 * scale, 2.0**-4 * magnitudes, 2.0**-10 * scale)).all()
        # Of two codes that are equally near either will do.
        assert ((actual == expected) | (error == (expected - features[i]).abs())).all()


@pytest.mark.parametrize("exponent", [-124, -3, 119])
def test_float8_reads_every_code_exactly(exponent):
    memory = ClassMemory(1, 2, len(CODES), dtype=FLOAT8)
    rows = torch.stack([CODES, -CODES]) * 2.0**exponent
    memory.push(rows, torch.tensor([0, 0]))
    assert torch.equal(memory.tensors()[0].double(), rows)


def test_float8_rows_at_the_ends():
    memory = ClassMemory(1, 6, 3, dtype=FLOAT8)
    largest = torch.finfo(torch.float32).max
    rows = [[0, 0, 0], [448, -1, 0], [448 * 2.0**90, 0, 0], [largest, 0, 0], [float("nan"), 1, 0], [1e-45, 0, 0]]
    memory.push(torch.tensor(rows), torch.zeros(6, dtype=torch.int32))
    # The largest float32 would be rounded to infinity, the smallest is below half of the smallest code.
    assert memory.tensors()[0].tolist() == [[0, 0, 0], [448, -1, 0], [448 * 2.0**90, 0, 0], *[[0, 0, 0]] * 3]
    assert len(memory) == 4
    assert all(buffer.isfinite().all() for buffer in memory.buffers())
    memory.reset()
    assert not any(buffer.any() for buffer in memory.buffers())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, FLOAT8])
def test_bytes_are_those_of_the_embeddings_and_of_a_copy_that_is_read(dtype):
    memory = ClassMemory(5, 7, 24, dtype=dtype)
    read = memory.tensors()[0]
    held = [memory.slots[:-1], memory.scales[:-1], read] if dtype == FLOAT8 else [read]
    assert memory_bytes(5, 7, 24, dtype) == sum(x.numel() * x.element_size() for x in held)


@pytest.mark.parametrize("kept", [torch.float32, FLOAT8])
def test_state_dict_resumes_exactly(generator, kept):
    def batch():
        return torch.randn(9, 2, generator=generator), torch.randint(0, 3, (9,), generator=generator)

    memory, resumed = ClassMemory(3, 4, 2, kept), ClassMemory(3, 4, 2, kept)
    memory.push(*batch())
    resumed.load_state_dict(memory.state_dict())
    for _ in range(3):
        features, labels = batch()
        memory.push(features, labels)
        resumed.push(features, labels)
    for x, y in zip(memory.tensors(), resumed.tensors(), strict=True):
        assert torch.equal(x, y)


def test_nothing_unkept_stays(generator):
    """Skipped rows, not-a-numbers included, leave no trace that a checkpoint would carry."""
    memory = ClassMemory(2, 2, 3)
    memory.push(torch.full((4, 3), torch.nan), torch.tensor([-1, -100, -1, -1]))
    assert all(not buffer.any() for buffer in memory.state_dict().values())


@pytest.mark.parametrize("kept", [torch.float32, torch.float16, FLOAT8])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e5])
def test_rows_that_would_not_be_finite_are_skipped(kept, bad):
    """1e5 is infinite in float16, and in the float16 features of a batch that overflowed."""
    memory = ClassMemory(2, 3, 4, dtype=kept)
    features = torch.arange(5.0)[:, None].repeat(1, 4)
    features[1, 3] = features[4, 0] = bad
    memory.push(features, torch.tensor([0, 0, 0, 1, 1]))
    skipped = kept == torch.float16 or bad != 1e5
    near = pytest.approx([3, bad], rel=2**-4)
    assert contents(memory) == ([[0, 2], [3]] if skipped else [[0, 1, 2], near])
    memory.push(features.half(), torch.tensor([0, 1, 0, 1, 1]))
    assert memory.slots.isfinite().all()
    assert len(memory) == (5 if skipped else 6)


def test_one_overflowed_batch_spoils_one_loss(generator):
    memory, criterion, finite = ClassMemory(5, 4, 8), TeacherLoss(margin=-1.0), []
    for step in range(12):
        features = torch.randn(20, 8, generator=generator).half() * (1e5 if step == 3 else 1)
        labels = torch.randint(0, 5, (20,), generator=generator)
        logits = torch.randn(20, 5, generator=generator)
        finite.append(criterion(logits, labels, features, features + 0.1, memory).total.isfinite().item())
        memory.push(features, labels)
    assert finite == [step != 3 for step in range(12)]


@pytest.mark.parametrize("kept", [torch.float32, FLOAT8])
def test_compiles_whole(generator, kept):
    plain, compiled = ClassMemory(3, 2, 2, kept), ClassMemory(3, 2, 2, kept)
    torch._dynamo.reset()
    push = torch.compile(compiled.push, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        features, labels = torch.randn(7, 2, generator=generator), torch.randint(-1, 3, (7,), generator=generator)
        plain.push(features, labels)
        push(features, labels)
    read = torch.compile(compiled.tensors, fullgraph=True, backend="aot_eager")
    for x, y in zip(plain.tensors(), read(), strict=True):
        assert torch.equal(x, y)


def test_compiled_code_refuses_wrong_labels():
    memory = ClassMemory(2, 2, 3)
    torch._dynamo.reset()
    push = torch.compile(memory.push, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="labels reach 2; they should be below num_classes = 2"):
        push(torch.ones(2, 3), torch.tensor([0, 2]))
    assert len(memory) == 0


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32], ids=str)
def test_narrow_labels_are_what_wide_ones_are(generator, dtype):
    features, labels = torch.randn(5, 3, generator=generator), torch.tensor([100, 3, 3, 100, 100])
    memories = [ClassMemory(200, 2, 3) for _ in range(2)]
    memories[0].push(features, labels.to(dtype))
    memories[1].push(features, labels)
    for x, y in zip(*(memory.tensors() for memory in memories), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(ValueError, match="labels reach 100; they should be below num_classes = 50"):
        ClassMemory(50, 2, 3).push(features, labels.to(dtype))


@pytest.mark.parametrize("kept", [torch.float32, FLOAT8])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_values(device, kept):
    with FakeTensorMode(), torch.device(device):
        memory = ClassMemory(4, 2, 3, kept)
        memory.push(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
        memory.reset()
        shapes = [(x.shape, x.device.type) for x in memory.tensors()]
    assert shapes == [((8, 3), device), ((8,), device)]


def test_a_recorded_push_stores_other_rows(generator):
    def step(slots, pushed, features, labels):
        memory = ClassMemory(4, 2, 3)
        memory.slots, memory.pushed = slots, pushed
        memory.push(features, labels)
        return memory.tensors()

    empty = ClassMemory(4, 2, 3)
    rows = torch.randn(5, 3, generator=generator), torch.tensor([0, 0, 3, -1, 0])
    graph = make_fx(step)(empty.slots.clone(), empty.pushed.clone(), *rows)
    rows = torch.randn(5, 3, generator=generator), torch.tensor([1, 2, 2, 2, 1])
    actual = graph(empty.slots.clone(), empty.pushed.clone(), *rows)
    empty.push(*rows)
    for x, y in zip(actual, empty.tensors(), strict=True):
        assert torch.equal(x, y)


def test_pushes_within_a_gradient_by_torch_func(generator):
    features, labels = torch.randn(5, 3, generator=generator), torch.tensor([0, 1, 1, 3, -1])

    def loss(memory):
        def of(x):
            memory.push(x, labels)
            return x.square().sum()

        return of

    expected = ClassMemory(4, 2, 3)
    expected.push(features, labels)
    for transform in (lambda f: grad(f)(features), lambda f: jvp(f, (features,), (features,))):
        memory = ClassMemory(4, 2, 3)
        transform(loss(memory))
        for x, y in zip(memory.tensors(), expected.tensors(), strict=True):
            assert torch.equal(x, y)
    with pytest.raises(RuntimeError, match=r"a memory cannot be changed within torch\.vmap"):
        vmap(loss(memory))(features[None])


def test_inference_tensors():
    with torch.inference_mode():
        features, labels, made_there = torch.ones(2, 3), torch.tensor([0, 1]), ClassMemory(2, 2, 3)
        made_there.push(features, labels)
    memory = ClassMemory(2, 2, 3)
    memory.push(features, labels)
    with torch.inference_mode():
        memory.push(features, labels)
    assert (len(memory), len(made_there)) == (4, 2)
    for change in (made_there.reset, lambda: made_there.push(torch.ones(2, 3), torch.tensor([0, 1]))):
        with pytest.raises(RuntimeError, match=r"made under torch\.inference_mode\(\), and can be changed there only"):
            change()


@pytest.mark.parametrize(
    ("features", "labels", "error", "message"),
    [
        (torch.ones(2, 4), torch.zeros(2).long(), ValueError, r"features has shape \(2, 4\); it should be \(N, 3\)"),
        (torch.ones(3), torch.zeros(3).long(), ValueError, r"features has shape \(3,\)"),
        (torch.ones(2, 3).long(), torch.zeros(2).long(), TypeError, "features has dtype torch.int64"),
        (torch.ones(2, 3), torch.zeros(3).long(), ValueError, r"labels has shape \(3,\); it should be \(2,\)"),
        (torch.ones(2, 3), torch.zeros(2), TypeError, "labels has dtype torch.float32"),
        (torch.ones(2, 3), torch.tensor([0, 2]), ValueError, "labels reach 2; they should be below num_classes = 2"),
    ],
)
def test_push_errors(features, labels, error, message):
    memory = ClassMemory(2, 2, 3)
    with pytest.raises(error, match=message):
        memory.push(features, labels)
    assert len(memory) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes is 0; it should be 1 or more"),
        ({"capacity": -1}, ValueError, "capacity is -1; it should be 1 or more"),
        ({"dim": 2.5}, TypeError, "dim is 2.5; it should be an integer"),
        ({"dtype": torch.int64}, TypeError, "dtype is torch.int64; it should be a float dtype"),
    ],
)
def test_constructor_errors(change, error, message):
    with pytest.raises(error, match=message):
        ClassMemory(**{"num_classes": 2, "capacity": 2, "dim": 3} | change)
