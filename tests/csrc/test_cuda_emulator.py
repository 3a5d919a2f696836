"""The emulator of a GPU: its fragments against plain matrix products, its copies, and the mistakes that it finds."""

import re

import pytest
import torch

from tests.csrc import emulator

NUMBER_FORMATS = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def device(architecture):
    return emulator.load("device", architecture)


@pytest.fixture(scope="module")
def sm_90():
    if (reason := emulator.why_unavailable()) is not None:
        pytest.skip(f"no emulator: {reason}")
    return emulator.load("device", "sm_90")


def name(dtype):
    return str(dtype).removeprefix("torch.")


def bits(mask, count=32):
    return [mask >> i & 1 for i in range(count)]


def test_warp_collectives(device, timing, generator):
    x = torch.randint(1, 9, (64,), generator=generator, dtype=torch.int32)
    out = torch.full((8, 64), -1, dtype=torch.int32)
    device.collectives(x, out, timing)
    for values, (rotated, exchanged, up, voted, matched, total, top, positions) in zip(
        x.view(2, 32), out.view(8, 2, 32).unbind(1), strict=True
    ):
        lanes = torch.arange(32)
        assert torch.equal(rotated, values[(lanes + 5) % 32])
        assert torch.equal(exchanged, values[lanes ^ 3])
        assert torch.equal(up, torch.where(lanes < 7, values, values[lanes - 7]))
        assert all(bits(mask) == (values % 2).tolist() for mask in voted.tolist())
        same = values[:, None] == values
        assert [bits(mask) for mask in matched.tolist()] == same.int().tolist()
        assert (total == values.sum()).all()
        assert (top == values.max()).all()
        expected = [
            100 * (v.bit_length() - 1) + 10 * ((v & -v).bit_length() - 1) + v.bit_count() for v in values.tolist()
        ]
        assert positions.tolist() == expected


def test_every_thread_of_every_block_runs_once(device, timing):
    out = torch.full((193,), -1, dtype=torch.int32)
    out[192] = 0
    device.positions(out, timing)
    assert out.tolist() == [*range(192), 192]


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrix(device, timing, transposed, generator):
    x = torch.randint(0, 2**15, (4, 8, 8), generator=generator, dtype=torch.int16)
    out = torch.empty(32, 4, dtype=torch.int32)
    device.load_matrix(x, transposed, out, timing)
    # Lane l: row l / 4, columns 2 (l % 4) and the next.
    expected = (x.mT if transposed else x).reshape(4, 32, 2).transpose(0, 1)
    assert torch.equal(out.view(torch.int16).view(32, 4, 2), expected)


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_mma(device, timing, dtype, generator):
    a, b = torch.randn(16, 16, generator=generator).to(dtype), torch.randn(16, 8, generator=generator).to(dtype)
    d = torch.randn(16, 8, generator=generator)
    expected = d.double() + a.double() @ b.double()
    getattr(device, f"mma_{name(dtype)}")(a, b, d, timing)
    assert torch.equal(d, expected.float())


@pytest.mark.parametrize("rounded", [True, False])
def test_mma_tf32_sees_ten_bits(device, timing, rounded, generator):
    a, b = torch.randn(16, 8, generator=generator), torch.randn(8, 8, generator=generator)
    d = torch.randn(16, 8, generator=generator)

    def tf32(x):
        return (((x.view(torch.int32) + (0x1000 if rounded else 0)) >> 13) << 13).view(torch.float32).double()

    expected = d.double() + tf32(a) @ tf32(b)
    device.mma_tf32(a, b, d, rounded, timing)
    assert torch.equal(d, expected.float())


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
@pytest.mark.parametrize("columns", [16, 64])
@pytest.mark.parametrize("depth", [16, 48, 64, 128])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("registers", [False, True])
def test_wgmma(sm_90, timing, dtype, columns, depth, transposed, registers, generator):
    if not transposed and depth == 48 and columns == 16:
        depth = 32
    a = torch.randn(64, depth, generator=generator).to(dtype)
    b = torch.randn(depth, columns, generator=generator).to(dtype)
    d = torch.randn(64, columns, generator=generator)
    expected = d.double() + a.double() @ b.double()
    operand = b if transposed else b.t().contiguous()
    run = getattr(sm_90, f"wgmma_{name(dtype)}_{columns}")
    run(a, operand, d, depth, transposed, registers, "", timing)
    torch.testing.assert_close(d.double(), expected, rtol=1e-6, atol=1e-5)


def test_wgmma_mistakes(sm_90):
    a, b = torch.ones(64, 16, dtype=torch.bfloat16), torch.ones(16, 16, dtype=torch.bfloat16)

    def run(fault, timing):
        d = torch.zeros(64, 16)
        sm_90.wgmma_bfloat16_16(a, b, d, 16, False, False, fault, timing)
        return d

    assert (run("", "late") == 16).all()
    assert (run("no wait", "late") == 0).all()
    with pytest.raises(RuntimeError, match="wgmma without wgmma_fence"):
        run("no fence", "late")
    with pytest.raises(RuntimeError, match="the warps of a warpgroup call different wgmma"):
        run("different descriptors", "early")


def test_copies_arrive_when_they_are_waited_for(device):
    x = torch.arange(128, dtype=torch.int32)
    for timing, waits, valid in (("late", True, 32), ("late", True, 5), ("early", True, 5), ("early", False, 32)):
        out = torch.full((128,), -7, dtype=torch.int32)
        device.copy_async(x, out, valid, waits, timing)
        assert torch.equal(out, torch.where(torch.arange(128) < 4 * valid, x, 0))
    out = torch.full((128,), -7, dtype=torch.int32)
    device.copy_async(x, out, 32, False, "late")
    assert (out == -1).all()  # the poison


def test_only_old_groups_are_waited_for(device):
    x = torch.arange(256, dtype=torch.int32)
    out = torch.empty_like(x)
    device.copy_groups(x, out, "late")
    assert torch.equal(out[:128], x[:128])
    assert (out[128:] == -1).all()


def test_a_missing_barrier_shows(device, timing):
    out = torch.empty(64)
    threads = torch.arange(64)
    device.neighbours(out, True, timing)
    assert torch.equal(out, ((threads + 1) % 64 + (threads - 1) % 64).float())
    device.neighbours(out, False, timing)
    assert out.isnan().any()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            "half a warp shuffles",
            "deadlock in block 0: threads 0-15 wait in shuffle at bind_device.cpp:.*; threads 16-31 have ended",
        ),
        ("lanes at different calls", "lanes of warp . in block 0 diverge"),
        ("a thread misses the barrier", None),
        ("barriers at two places", "divergent block_barrier in block 0"),
        ("group of too few", "deadlock in block 0: threads 0-31 wait in group_barrier"),
        ("read behind", "access out of bounds in block 0, thread"),
        ("read before", "access out of bounds in block 0, thread"),
        ("write behind", "write beside a buffer"),
        ("write behind shared memory", "write behind shared memory in block 0"),
        ("far behind shared memory", "access out of bounds"),
        ("vector outside of shared memory", "address outside of shared memory at bind_device.cpp"),
        ("misaligned vector", "address is not a multiple of 16 at bind_device.cpp"),
        ("misaligned global vector", "address is not a multiple of 16 at bind_device.cpp"),
        ("shared for global", "shared memory where global memory is meant"),
        ("shuffle from nowhere", "shuffle from lane 32"),
        ("assertion", re.escape("ICCKD_ASSERT(thread() < 63) failed at bind_device.cpp")),
    ],
)
def test_mistakes_are_found(device, timing, mistake, message):
    x = torch.zeros(39)  # the buffer's last 4 bytes of 16 belong to nobody
    if message is None:  # threads that have ended do not count, as on a GPU
        device.mistake(mistake, x, timing)
        return
    with pytest.raises(RuntimeError, match=message):
        device.mistake(mistake, x, timing)
    device.mistake("none", x, timing)  # the next launch is not disturbed


def test_inputs_cannot_be_written(device):
    with pytest.raises(RuntimeError, match="access out of bounds"):
        device.write_read_only(torch.zeros(32), "late")


@pytest.mark.parametrize("dtype", [*NUMBER_FORMATS, torch.float32])
def test_vectors_of_elements(device, dtype, generator):
    x = torch.randn(32 * 16 // dtype.itemsize, generator=generator).to(dtype)
    floats, back = torch.empty(len(x)), torch.empty_like(x)
    getattr(device, f"convert_{name(dtype)}")(x, floats, back, "late")
    assert torch.equal(floats, x.float())
    assert torch.equal(back, x)


@pytest.mark.parametrize("dtype", NUMBER_FORMATS)
def test_rounding(device, dtype, generator):
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 65519.9, 65520.0, 1e-8, 6e-8, 3.4e38])
    x = torch.cat([torch.randn(1000, generator=generator).exp() * 100, special, 1 + torch.arange(64) / 256])
    out = torch.empty(len(x), dtype=dtype)
    getattr(device, f"round_{name(dtype)}")(x, out, len(x), "late")
    torch.testing.assert_close(out, x.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_swizzle_is_a_permutation_that_spreads_columns(device):
    places = torch.tensor([device.swizzled(offset) for offset in range(0, 8192, 16)])
    assert sorted(places.tolist()) == list(range(0, 8192, 16))
    for column in range(8):  # 16 bytes of 8 rows below each other: 8 different groups of banks
        assert len({device.swizzled(128 * row + 16 * column) % 128 for row in range(8)}) == 8
