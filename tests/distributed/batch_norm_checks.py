"""Batch normalisation over processes against that of all rows in one."""

import copy

import torch
import torch.distributed as dist
from torch import nn

from icckd.distributed.batch_norm import synchronise_batch_norm
from icckd.training.statistics import unmoved_statistics


def network(dtype):
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(54, affine=False)
    return nn.Sequential(*layers, nn.Linear(54, 3)).to(dtype)


def check_outputs_gradients_and_statistics(world):
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-4)):
        for counts in ((3, 0, 5), (1, 1, 1), (0, 0, 4)):
            check(world, counts, dtype, tolerance)


def check(world, counts, dtype, tolerance):
    together, one = network(dtype), network(dtype).double()
    synchronise_batch_norm(together, world.group)
    x, weights = 3 * torch.randn(sum(counts), 4, 5, 5, dtype=dtype) + 7, torch.randn(sum(counts), 3, dtype=dtype)
    own = x.split(counts)[world.rank].requires_grad_()
    output = together(own)
    (output * weights.split(counts)[world.rank]).sum().backward()
    of_all = x.detach().double().requires_grad_()
    expected = one(of_all)
    (expected * weights.double()).sum().backward()
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(output, expected.split(counts)[world.rank], **close)
    torch.testing.assert_close(own.grad, of_all.grad.split(counts)[world.rank], **close)
    for found, wanted in zip(together.parameters(), one.parameters(), strict=True):
        total = found.grad.clone()
        dist.all_reduce(total)
        torch.testing.assert_close(total, wanted.grad, rtol=tolerance, atol=20 * tolerance, check_dtype=False)
    for found, wanted in zip(together.buffers(), one.buffers(), strict=True):
        torch.testing.assert_close(found, wanted, **close)


def check_statistics_stay_where_they_should(world):
    together = network(torch.float32)
    synchronise_batch_norm(together, world.group)
    before = copy.deepcopy(dict(together.named_buffers()))
    x = torch.randn(2, 4, 5, 5)
    with unmoved_statistics(together):
        varied = together(x)
    fixed = together.eval()(x)
    assert not torch.allclose(varied, fixed)
    torch.testing.assert_close(fixed, network(torch.float32).eval()(x))
    assert all(torch.equal(before[name], now) for name, now in together.named_buffers())
