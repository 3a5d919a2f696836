"""Sizes that only a GPU's memory holds: index spaces beyond 2³¹, and how much memory a step takes."""

import fcntl
import gc
import tempfile
from pathlib import Path

import pytest
import torch

from icckd.functional import cross_entropy_with_margin, intra_class_contrastive
from tests.problems import with_gradients


@pytest.fixture
def most_of_the_memory(target):
    """For one test at a time, of however many processes share the GPU."""
    with (Path(tempfile.gettempdir()) / "icckd-gpu-memory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        gc.collect()
        if not target.interpreted:
            torch.cuda.empty_cache()


def free_bytes():
    return torch.cuda.mem_get_info()[0]


@pytest.mark.parametrize("counted", [False, True])
def test_intra_class_of_more_numbers_than_32_bits_count(target, most_of_the_memory, counted):
    """Classes from all over a batch of more than 2³¹ numbers have the loss and gradients they have alone."""
    target.require("intra_class_rows")
    rows, dim = target.choose((2**19 + 77, 4096 + 64), (90, 9))
    size = rows * dim * 2
    if not target.interpreted and free_bytes() < 9 * size:
        pytest.skip(f"needs {9 * size / 2**30:.0f} GiB of GPU memory")
    generator = torch.Generator(target.device).manual_seed(0)
    anchor = torch.randn(rows, dim, generator=generator, device=target.device, dtype=torch.bfloat16)
    positive = torch.randn(rows, dim, generator=generator, device=target.device, dtype=torch.bfloat16)
    # Classes of 8 rows far apart, and one of 200 (33) rows; the first and last row are among those looked at.
    row = torch.arange(rows, device=target.device)
    spread, several = rows // 8, target.choose(200, 33)
    labels = row % spread
    labels[row % (rows // several) == 3] = spread
    options = {"reduction": "none", "backend": target.backend}
    looked_at = torch.isin(labels, torch.stack([labels[0], labels[-1], labels[3]])).nonzero()[:, 0]
    upstream = torch.zeros(rows, device=target.device)
    upstream[looked_at] = torch.rand(len(looked_at), generator=generator, device=target.device)
    num_classes = spread + 1 if counted else None
    whole = with_gradients(
        intra_class_contrastive, anchor, positive, labels, upstream=upstream, num_classes=num_classes, **options
    )
    alone = with_gradients(
        intra_class_contrastive,
        anchor[looked_at],
        positive[looked_at],
        labels[looked_at],
        upstream=upstream[looked_at],
        **options,
    )
    for x, y in zip(whole[:3], alone[:3], strict=True):
        torch.testing.assert_close(x[looked_at], y, rtol=2e-2, atol=2e-2 * y.abs().max().item())


def test_cross_entropy_of_more_logits_than_32_bits_count(target, most_of_the_memory):
    target.require("cross_entropy_margin_rows")
    rows, classes = target.choose((2**14 + 3, 2**17 + 40), (9, 40))
    if not target.interpreted and free_bytes() < 4 * rows * classes * 2:
        pytest.skip(f"needs {8 * rows * classes / 2**30:.0f} GiB of GPU memory")
    generator = torch.Generator(target.device).manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator, device=target.device, dtype=torch.bfloat16)
    labels = torch.randint(classes, (rows,), generator=generator, device=target.device)
    few = torch.tensor([0, rows // 2, rows - 1], device=target.device)
    losses = []
    for x, y in ((logits, labels), (logits[few], labels[few])):
        x = x.detach().requires_grad_()
        loss, margin = cross_entropy_with_margin(x, y, reduction="none", backend=target.backend)
        loss.backward(torch.ones_like(loss))
        losses.append((loss.detach(), margin, x.grad))
    for x, y in zip(*losses, strict=True):
        torch.testing.assert_close(x[few], y)


@pytest.mark.parametrize("classes", [1, 500])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_intra_class_takes_memory_for_its_rows_only(target, classes, reduction):
    """One class of 2¹⁶ rows is 2³² pairs: a matrix of them would be 8 GiB or more."""
    if target.interpreted:
        pytest.skip("an interpreter's memory is not a GPU's")
    rows, dim = 2**16, 64
    generator = torch.Generator("cuda").manual_seed(0)
    anchor, positive = (
        torch.randn(rows, dim, generator=generator, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    labels = torch.randint(classes, (rows,), generator=generator, device="cuda")
    upstream = torch.ones(rows, device="cuda") if reduction == "none" else None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    options = {"num_classes": classes, "reduction": reduction, "backend": target.backend, "upstream": upstream}
    with_gradients(intra_class_contrastive, anchor, positive, labels, **options)
    # Both gradients, scaled rows of up to 128 columns, and a hundred numbers a row for the layout.
    allowed = rows * (2 * dim * 2 + 128 * 2 + 100 * 8)
    assert torch.cuda.max_memory_allocated() - before <= allowed
