"""Batch normalisation by the statistics of all ranks' rows: PyTorch's on a GPU; on a CPU, which it refuses, our own."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from icckd.compiling import disable


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`own`, whose tensors it keeps, with mean and variance of a channel those of the numbers of all ranks of `group`.

    Ranks may hold different numbers of rows, or none. In backward the two sums that a channel's gradient needs are of
    all ranks, too; gradients of weight and bias are the own rows' and are added up with those of all other parameters.
    """

    def __init__(self, own: nn.modules.batchnorm._BatchNorm, group: dist.ProcessGroup):
        super().__init__(own.num_features, own.eps, own.momentum, own.affine, own.track_running_stats)
        self.group = group
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(own, name))
        self.train(own.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes after the channels."""

    def forward(self, input: Tensor) -> Tensor:
        return self._normalize_by_all(input) if self.training else super().forward(input)

    @disable
    def _normalize_by_all(self, x: Tensor) -> Tensor:
        output, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps, self.group)
        if self.track_running_stats:
            self._move(mean, variance, count)
        return output

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Let the running statistics follow: the variance that they keep is the unbiased one."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            # Where no rank has a row they stay.
            running.copy_(torch.where(count > 0, torch.lerp(running, now.to(running.dtype), share), running))


class _Normalize(torch.autograd.Function):
    """(x − mean) / √(variance + eps) · weight + bias; also mean, variance and how many numbers a channel has."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance, count = _statistics(x, group)
        own = torch.float64 if x.dtype == torch.float64 else torch.float32
        ctx.save_for_backward(x, weight, mean.to(own), variance.to(own), count)
        ctx.eps, ctx.group = eps, group
        output = x.clone()
        if x.numel():
            output = nn.functional.batch_norm(x, mean.to(own), variance.to(own), weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        channels = x.shape[1]
        by_fixed, of_weight, of_bias = x.new_zeros(x.shape), mean.new_zeros(channels), mean.new_zeros(channels)
        if x.numel():
            # As if the statistics were fixed; the two sums are those of the gradients of weight and bias.
            by_fixed, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        sums = torch.cat([of_weight, of_bias]).double()
        dist.all_reduce(sums, group=ctx.group)
        along, level = (sums / count.clamp(min=1)).chunk(2)
        inverse = (variance.double() + ctx.eps).rsqrt()
        factor = inverse if weight is None else inverse * weight.double()
        # What the fixed statistics left out: factor · (mean gradient + x̂ · mean of gradient · x̂), linear in x.
        slope, offset = factor * along * inverse, factor * (level - along * inverse * mean.double())
        shape = (1, channels, *(1,) * (x.ndim - 2))
        moved = by_fixed - (x * slope.to(x.dtype).view(shape) + offset.to(x.dtype).view(shape))
        affine = (of_weight.to(weight.dtype), of_bias.to(weight.dtype)) if weight is not None else (None, None)
        return (moved, *affine, None, None)


def _statistics(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number of values of each channel over all ranks, float64."""
    channels = x.shape[1]
    mine = x.new_zeros(2 * channels + 1, dtype=torch.float64)
    if x.numel():
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(precise, dim=[0, *range(2, x.ndim)], correction=0)
        mine = torch.cat([mean.double(), variance.double(), mine.new_full((1,), x.numel() / channels)])
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group=group)
    means, variances, counts = torch.stack(every).split([channels, channels, 1], dim=1)
    count = counts.sum()
    share = counts / count.clamp(min=1)
    mean = (share * means).sum(0)
    # Within ranks and between them, which does not cancel as a mean of squares would.
    return mean, (share * (variances + (means - mean).square())).sum(0), count


def synchronise_batch_norm(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Replace every batch normalisation within `module` by one over the ranks of `group`; its tensors stay the same."""
    if any(parameter.is_cuda for parameter in module.parameters()):
        nn.SyncBatchNorm.convert_sync_batchnorm(module, group)
        return
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, SyncBatchNorm(child, group))
        else:
            synchronise_batch_norm(child, group)
