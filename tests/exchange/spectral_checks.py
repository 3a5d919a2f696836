"""weak_spectral of rows that are spread over ranks: sums travel."""

import pytest
import torch

from icckd import functional, reference
from icckd.exchange import Ranks
from tests.exchange.owner_checks import mean_over_ranks


def check_the_loss_of_all_ranks_is_that_of_one_batch(here, counts):
    group = Ranks.known(here.group, counts) if sum(counts) % 2 else here.group
    generator = torch.Generator().manual_seed(sum(counts))
    view1, view2, logits = torch.randn(3, sum(counts), 4, generator=generator, dtype=torch.float64)
    posterior = logits.softmax(1)
    network = torch.eye(4, dtype=torch.float64, requires_grad=True)
    own = [x.split(counts)[here.rank] for x in (view1, view2, posterior)]
    # An empty batch's rows come from no network: its rank has to serve the others all the same.
    views = [x @ network if len(x) else x for x in own[:2]]
    loss = functional.weak_spectral(*views, own[2], group=group)
    (3 * loss).backward()
    single = torch.eye(4, dtype=torch.float64, requires_grad=True)
    expected = reference.weak_spectral(view1 @ single, view2 @ single, posterior)
    (3 * expected).backward()
    torch.testing.assert_close(mean_over_ranks(here, loss), expected.detach())
    gradient = torch.zeros_like(network) if network.grad is None else network.grad
    torch.testing.assert_close(mean_over_ranks(here, gradient), single.grad)
    with torch.no_grad():
        torch.testing.assert_close(functional.weak_spectral(*own, group=here.group), loss)


def check_a_sum_over_ranks_is_differentiated_as_often_as_wanted(here):
    ranks = Ranks.known(here.group, [1] * here.size)
    generator = torch.Generator().manual_seed(5)
    x, weight = torch.randn(2, here.size, 3, generator=generator, dtype=torch.float64)
    own = x[here.rank].clone().requires_grad_()
    total = ranks.sum_with_gradient(own)
    torch.testing.assert_close(total.detach(), x.sum(0))
    (first,) = torch.autograd.grad((weight[here.rank] * total**3).sum(), own, create_graph=True)
    torch.testing.assert_close(first.detach(), 3 * weight.sum(0) * x.sum(0) ** 2)
    (second,) = torch.autograd.grad(first.sum(), own)
    torch.testing.assert_close(second, 6 * weight.sum(0) * x.sum(0) * here.size)
    # A rank whose part needs no gradient serves the others.
    own = x[here.rank].clone().requires_grad_(here.rank != 1)
    (weight[here.rank] * ranks.sum_with_gradient(own)).sum().backward()
    if own.requires_grad:
        torch.testing.assert_close(own.grad, weight.sum(0))


def check_it_names_what_is_wrong(here):
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match=r"posterior has \[4, 5, 6\] columns on the ranks of group"):
        functional.weak_spectral(x, x, torch.ones(2, 4 + here.rank), group=here.group)
    with pytest.raises(RuntimeError, match=r"group is given within a transform of torch\.func"):
        torch.func.grad(lambda z: functional.weak_spectral(z, x, x, group=here.group))(x)


def every_check(here):
    """All of the above; `here` is of three ranks."""
    for counts in ([4, 4, 4], [7, 1, 13], [5, 0, 9], [1, 0, 0], [0, 0, 0]):
        check_the_loss_of_all_ranks_is_that_of_one_batch(here, counts)
    check_a_sum_over_ranks_is_differentiated_as_often_as_wanted(here)
    check_it_names_what_is_wrong(here)
