"""The cuda backend from end to end without a GPU: its kernels in the emulator, Triton's in the interpreter.

What is left out is the host's side of csrc/cuda/*.cu: checks, allocation, launches.
"""

import pytest
import torch

from icckd import backends
from icckd.backends import cuda
from icckd.functional import intra_class_contrastive
from icckd.kernels.layout import Layout
from icckd.kernels.tables import interpreted
from tests.csrc import emulator
from tests.csrc.test_cuda_class_layout import layout_by
from tests.problems import SMALL, assert_as_exact_as_pytorch, problem, with_gradients

pytestmark = pytest.mark.skipif(not interpreted(), reason="Triton's kernels run on a GPU, the emulated ones on the CPU")

SHARED_MEMORY = 227 << 10


class EmulatedLibrary:
    """The operators of `torch.ops.icckd_cuda` that the intra-class loss takes, and how often each was called."""

    def __init__(self):
        self.calls = {"class_layout": 0, "whole_class": 0}

    def whole_class_limit(self, anchor, num_classes):
        return 32

    def class_layout_most_classes(self):
        return emulator.load("class_layout", "sm_80").most_classes

    def class_layout(self, labels, weight, memory_labels, num_classes, limit):
        self.calls["class_layout"] += 1
        slots = labels.new_empty(0) if memory_labels is None else memory_labels
        return layout_by("late")(labels, weight, slots, num_classes, limit)

    def whole_class(
        self, anchor, positive, weight, scale, upstream, temperature, order, rank, start, size, active, totals,
        limit, normalize, allow_tf32, losses, lse, d_anchor, d_positive, d_kappa,
    ):  # fmt: skip
        self.calls["whole_class"] += 1
        module = emulator.load("whole_class", "sm_90")
        kernel = getattr(module, f"whole_class_{str(anchor.dtype).removeprefix('torch.')}")
        kernel(
            anchor, positive, 0, anchor.stride(0), positive.stride(0), anchor.shape[1], weight, scale, upstream,
            temperature, order, rank, start, size, active, totals, limit, SHARED_MEMORY, 3, normalize, not allow_tf32,
            losses, lse, d_anchor, d_positive, d_kappa, "late",
        )  # fmt: skip


@pytest.fixture
def library(monkeypatch):
    """The emulated library, and tensors of the CPU served by the cuda backend."""
    if (reason := emulator.why_unavailable()) is not None:
        pytest.skip(f"no emulator: {reason}")
    emulated = EmulatedLibrary()
    monkeypatch.setattr(torch.ops, "icckd_cuda", emulated, raising=False)
    monkeypatch.setattr(backends, "select", lambda backend, *_: backend)
    return emulated


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_small_and_large_classes_in_one_batch(library, dtype, reduction):
    # Some 20 rows a class, which one tile holds, and one class of over 60, which goes to Triton.
    anchor, positive, labels, options = problem(160, 16, 6, dtype=dtype)
    labels[labels == 1] = 0
    labels[labels == 2] = 0
    options |= {"reduction": reduction, "num_classes": 6}
    assert_as_exact_as_pytorch("cuda", anchor, positive, labels, **options)
    calls = 1 if reduction == "mean" and dtype != torch.float16 else 2
    assert library.calls == {"class_layout": calls, "whole_class": calls}


def test_without_a_number_of_classes_rows_are_sorted(library):
    anchor, positive, labels, options = problem(60, 8)
    assert_as_exact_as_pytorch("cuda", anchor, positive, labels, **options)
    assert library.calls == {"class_layout": 0, "whole_class": 1}


def test_a_memory_is_left_to_triton(library):
    anchor, positive, labels, options = problem(40, 8, slots=30)
    assert_as_exact_as_pytorch("cuda", anchor, positive, labels, num_classes=5, **options)
    assert library.calls == {"class_layout": 1, "whole_class": 0}


def test_ignored_rows_and_no_rows(library):
    anchor, positive, labels, options = problem(30, 8)
    anchor[labels < 0] = torch.nan
    _, d_anchor, d_positive, _ = with_gradients(
        cuda_loss, anchor, positive, labels, num_classes=4, gate=options["gate"]
    )
    assert not d_anchor[labels < 0].any()
    assert not d_positive[labels < 0].any()
    loss, *_ = with_gradients(cuda_loss, anchor[:0], positive[:0], labels[:0], num_classes=4)
    assert loss == 0


def cuda_loss(*arguments, **options):
    return intra_class_contrastive(*arguments, backend="cuda", **options)


def test_what_the_library_computes_alone_is_looked_up_in_it(library):
    library.kd_kl_rows = type("Operator", (), {"default": "the operator"})
    assert cuda.kd_kl_rows == "the operator"
    with pytest.raises(AttributeError, match="no operator 'softmax'"):
        _ = cuda.softmax


def test_layouts_are_triton_s(library):
    labels = torch.tensor([1, 0, 1, -1])
    layout = cuda.WholeClass(32).layout(labels, torch.ones(4), None, 2, 32)
    assert isinstance(layout, Layout)
    assert layout.order.tolist() == [0, 2, 1, 3]
