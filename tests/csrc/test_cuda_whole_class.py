"""The whole-class kernel in the emulator: against the definition, in every mode, and what it must leave alone."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from icckd import reference
from icckd.kernels.layout import Layout, sorted_layout
from tests.csrc import emulator
from tests.problems import with_gradients

SHARED = 227 * 1024
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
    upstream: Tensor | None = None
    limit: int = 32

    def layout(self) -> Layout:
        return sorted_layout(self.labels, self.weight(), self.labels.new_empty(0), None, self.limit)

    def weight(self) -> Tensor:
        return torch.where(self.labels >= 0, self.gate, 0)

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

    def between_poison(x):
        buffer = torch.full((offset + count * stride,), torch.nan, dtype=dtype)
        buffer[offset:].view(count, stride)[:, :dim] = x
        # What nobody may read, or has to.
        buffer[offset:].view(count, stride)[p.labels < 0] = torch.nan
        return buffer[: len(buffer) - padding].contiguous()

    positive = p.positive.clone()
    positive[p.gate == 0] = torch.nan
    result = Outputs()
    for name in outputs:
        shape = (count, dim) if name in ("d_anchor", "d_positive") else (count,)
        number_format = dtype if name in ("d_anchor", "d_positive") else torch.float32
        setattr(result, name, torch.full(shape, torch.nan, dtype=number_format))
    layout = p.layout()
    kernel = getattr(emulator.load("whole_class", architecture), f"whole_class_{str(dtype).removeprefix('torch.')}")
    kernel(
        between_poison(p.anchor), between_poison(positive), offset, stride, stride, dim, p.weight(), p.upstream,
        torch.tensor(p.temperature), layout.order, layout.rank, layout.start, layout.size, layout.active, layout.totals,
        p.limit, shared, blocks, p.normalize, exact, *vars(result).values(), timing,
    )  # fmt: skip
    for name, x in result.present().items():
        assert x[~p.served()].isnan().all(), f"{name} of rows that are others' was written"
    return result


def expected(p, dtype):
    """The definition's outputs in a number format, as far as served rows go; others are 0."""
    served = p.served()
    labels = torch.where(served, p.labels, -1)
    anchor, positive = (torch.where(served[:, None], x, 0).to(dtype) for x in (p.anchor, p.positive))
    options = {"gate": p.weight().to(torch.promote_types(dtype, torch.float32)), "normalize": p.normalize}
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
    """Errors against float64 are at most twice those of PyTorch in the same precision, or rounding: tests/problems.py."""
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
