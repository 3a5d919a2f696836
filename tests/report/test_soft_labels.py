import torch

from icckd.report.soft_labels import softened


def test_softened_is_the_softmax_at_a_temperature():
    logits = 5 * torch.randn(6, 4, generator=torch.Generator().manual_seed(6))
    weights = (logits.double() / 3).exp()
    torch.testing.assert_close(softened(logits, 3.0), weights / weights.sum(1, keepdim=True))
    scaled = softened(7 * logits + 2, 3.0, standardize=True)
    torch.testing.assert_close(scaled, softened(logits, 3.0, standardize=True), atol=1e-6, rtol=1e-6)
