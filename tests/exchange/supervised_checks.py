"""The supervised contrastive loss of rows of several ranks, against the definition on all rows."""

import pytest
import torch

from icckd import reference
from icckd.exchange import Ranks
from icckd.functional import supervised_contrastive
from tests.exchange.owner_checks import Rows, counts_of, mean_over_ranks


def one_batch(rows, reduction):
    """Of the definition: the loss of all rows, and the gradients of a linear network and of the temperature."""
    network, temperature = torch.eye(4, dtype=torch.float64, requires_grad=True), temperature_of(torch.float64)
    loss = reference.supervised_contrastive(
        rows.anchor.double() @ network, rows.labels, temperature=temperature, reduction=reduction
    )
    return loss.detach(), *torch.autograd.grad(loss.sum(), (network, temperature))


def temperature_of(dtype):
    return torch.tensor(0.3, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)


def check_ranks_are_one_batch(here, counts, dtype=torch.float64, tolerance=1e-11):
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    for labels in ("few", "many"):
        rows = Rows(counts, labels, dtype)
        own, _, own_labels, _ = rows.of(here.rank)
        groups = (here.group, rows.known(here, "auto"), Ranks.known(here.group, counts))
        for reduction, group, num_classes in zip(
            ("mean", "sum", "none"), groups, (rows.classes, None, 40), strict=True
        ):
            expected = one_batch(rows, reduction)
            network, temperature = torch.eye(4, dtype=dtype, requires_grad=True), temperature_of(dtype)
            # An empty batch's rows come from no network: its rank has to serve the others all the same.
            features = own @ network if len(own) else own
            options = {"temperature": temperature, "reduction": reduction, "num_classes": num_classes, "group": group}
            loss = supervised_contrastive(features, own_labels, **options)
            loss.sum().backward()
            ranks = 1 if reduction == "mean" else here.size
            if reduction == "none":
                torch.testing.assert_close(loss, expected[0].split(counts)[here.rank], **close)
            else:
                torch.testing.assert_close(ranks * mean_over_ranks(here, loss), expected[0], **close)
            for parameter, gradient in zip((network, temperature), expected[1:], strict=True):
                found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                torch.testing.assert_close(ranks * mean_over_ranks(here, found), gradient, **close)
            with torch.no_grad():
                torch.testing.assert_close(supervised_contrastive(own, own_labels, **options), loss)


def check_bits(here):
    rows = Rows(counts_of(here), "few", torch.float32)
    own, _, labels, _ = rows.of(here.rank)
    own.requires_grad_()
    results = []
    for _ in range(2):
        loss = supervised_contrastive(own, labels, group=rows.known(here, "auto"))
        results.append((loss.detach(), *torch.autograd.grad(loss, own)))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def check_what_is_wrong_is_said(here):
    x, labels = torch.randn(3, 4), torch.tensor([0, 1, 7 * (here.rank == 1)])
    with pytest.raises(ValueError, match="labels reach 7; they should be below num_classes = 5"):
        supervised_contrastive(x, labels, num_classes=5, group=here.group)
    ranks = Ranks.known(here.group, [3] * here.size)
    with pytest.raises(ValueError, match="features has 2 rows; it should have 3, as group says"):
        supervised_contrastive(x[:2], labels[:2], group=ranks)
    with pytest.raises(RuntimeError, match=r"group is given within a transform of torch\.func"):
        torch.func.grad(lambda z: supervised_contrastive(z, labels, group=ranks))(x)


def every_check(here):
    for counts in (counts_of(here), [0] * here.size, [0, 11, 0, 0][: here.size]):
        check_ranks_are_one_batch(here, counts)
    if here.size == 3:
        check_ranks_are_one_batch(here, counts_of(here), torch.float32, 1e-4)
        check_ranks_are_one_batch(here, [6] * here.size, torch.bfloat16, 5e-2)
    check_bits(here)
    check_what_is_wrong_is_said(here)
