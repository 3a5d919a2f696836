"""The registered operators: schemas, fake kernels, autograd registration, compilation, what is counted of them."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode

from icckd.functional import center_contrastive
from icckd.ops import center_contrastive as ops
from tests.functional.test_center_contrastive import make, results

# Of which the loss is above 0: opcheck differentiates its magnitude, and backward scales saved gradients in place.
SETTINGS = (16.0, 1.0, 0.1)


def test_opcheck():
    features, centers, labels = make(7, 4, 3)
    features, centers = normalize(features), normalize(centers)
    torch.library.opcheck(ops.center_contrastive_rows, (features, centers, labels, *SETTINGS, "cpu"))
    inputs = features.clone().requires_grad_(), centers.clone().requires_grad_(), labels, *SETTINGS
    torch.library.opcheck(ops.center_contrastive_rows, (*inputs, "cpu"))
    torch.library.opcheck(ops.center_contrastive_sum, (*inputs, True, True, True, "cpu"))
    _, lse = ops.center_contrastive_rows(features, centers, labels, *SETTINGS, "cpu")
    upstream = torch.rand(7, generator=torch.Generator().manual_seed(1))
    arguments = (upstream, lse, features, centers, labels, *SETTINGS, True, False, "cpu")
    torch.library.opcheck(ops.center_contrastive_rows_backward, arguments)


def test_compiles_whole():
    def step(features, centers, labels):
        return 3 * center_contrastive(features * 2, centers, labels)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    inputs = make(9)
    torch.testing.assert_close(results(compiled, *inputs), results(step, *inputs))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_products_are_counted(reduction):
    features, centers, labels = make(6, 4, 5)
    products = 2 * 6 * 4 * 5
    for x, others in ((features, 1), (centers, 2)):
        x.requires_grad_()
        with FlopCounterMode(display=False) as counter:
            center_contrastive(features, centers, labels, reduction=reduction).sum().backward()
        again = reduction == "none"
        assert counter.get_total_flops() == (1 + again + others) * products
