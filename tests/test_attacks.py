"""Attacks in float64 on losses whose largest value in the ball is known, and what they leave alone."""

import pytest
import torch

from icckd.attacks import fgsm, gradient, pgd
from icckd.models import build_model

MEAN, STD = (0.3, 0.45, 0.6), (0.2, 0.25, 0.31)
CENTER, SCALE = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (MEAN, STD))


@pytest.fixture
def pixels():
    """Pixels, two of them at the bounds."""
    x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[0, 0, 0, 0], x[0, 1, 0, 0] = 0, 1
    return x


def normalized(pixels):
    return (pixels - CENTER) / SCALE


def back(images):
    return images * SCALE + CENTER


def start_in_ball(like, epsilon, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.empty_like(like).uniform_(-epsilon, epsilon, generator=random)


def linear(seed=1):
    """Weights of a linear loss, some of them 0, and the loss."""
    w = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w[0, 0, 1] = w[2, 3, 3] = 0
    return w, lambda images: (w * images).sum()


@pytest.mark.parametrize("epsilon", [0.03, 0.3])
def test_a_linear_loss_ends_in_the_corner_of_the_ball_and_of_the_pixels(pixels, epsilon):
    w, loss = linear()
    corner = (pixels + epsilon * w.sign()).clamp(0, 1)
    found = fgsm(loss, normalized(pixels), epsilon=epsilon, mean=MEAN, std=STD)
    torch.testing.assert_close(back(found), corner, rtol=0, atol=1e-12)
    start = start_in_ball(pixels, epsilon)
    found = pgd(loss, normalized(pixels), start, epsilon=epsilon, step_size=epsilon / 4, steps=8, mean=MEAN, std=STD)
    # Pixels without a gradient stay where they began.
    corner = torch.where(w == 0, (pixels + start).clamp(0, 1), corner)
    torch.testing.assert_close(back(found), corner, rtol=0, atol=1e-12)


def test_too_few_steps_go_as_far_as_they_can(pixels):
    w, loss = linear()
    found = pgd(
        loss, normalized(pixels), torch.zeros_like(pixels), epsilon=0.5, step_size=0.01, steps=3, mean=MEAN, std=STD
    )
    torch.testing.assert_close(back(found), (pixels + 0.03 * w.sign()).clamp(0, 1), rtol=0, atol=1e-12)


def test_steps_are_those_of_a_loop_that_differentiates_by_hand(pixels):
    """The loss Σ(x·w)², whose gradient 2(x·w)w turns as the images move."""
    w, _ = linear()
    x, epsilon, step = normalized(pixels), 0.2, 0.07
    start = start_in_ball(pixels, epsilon, seed=4)
    moved = (pixels + start).clamp(0, 1)
    for _ in range(5):
        for i in range(len(moved)):
            product = (normalized(moved[i]) * w).sum()
            ahead = moved[i] + step * torch.sign(2 * product * w)
            moved[i] = torch.minimum(torch.maximum(ahead, pixels[i] - epsilon), pixels[i] + epsilon).clamp(0, 1)
    found = pgd(
        lambda images: (images * w).sum((1, 2, 3)).square().sum(),
        x, start, epsilon=epsilon, step_size=step, steps=5, mean=MEAN, std=STD,
    )  # fmt: skip
    torch.testing.assert_close(back(found), moved, rtol=0, atol=1e-12)


def test_a_network_is_fooled_within_the_ball_and_keeps_all_that_it_has(pixels):
    torch.manual_seed(0)
    model = build_model("resnet8", 3, 4, 32).double().eval()
    x = torch.rand(6, 3, 32, 32, dtype=torch.float64)
    labels = torch.arange(6) % 4

    def loss(images):
        return torch.nn.functional.cross_entropy(model(images)[1], labels, reduction="sum")

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    epsilon = 8 / 255
    start = start_in_ball(x, epsilon)
    found = pgd(loss, normalized(x), start, epsilon=epsilon, step_size=2 / 255, steps=5, mean=MEAN, std=STD)
    again = pgd(loss, normalized(x), start, epsilon=epsilon, step_size=2 / 255, steps=5, mean=MEAN, std=STD)
    assert torch.equal(found, again)
    assert not found.requires_grad
    assert (back(found) - x).abs().max() <= epsilon + 1e-12
    assert back(found).min() >= -1e-12
    assert back(found).max() <= 1 + 1e-12
    assert loss(found) > loss(normalized(x)) + 0.1
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_attack_works_where_no_gradient_is_wanted(pixels):
    w, loss = linear()
    with torch.no_grad():
        found = fgsm(loss, normalized(pixels), epsilon=0.1, mean=MEAN, std=STD)
    torch.testing.assert_close(back(found), (pixels + 0.1 * w.sign()).clamp(0, 1), rtol=0, atol=1e-12)


def test_what_has_no_gradient_moves_nothing(pixels):
    x, weight = normalized(pixels), torch.ones((), dtype=torch.float64, requires_grad=True)
    for loss in (lambda images: images.detach().sum(), lambda images: weight * images.detach().sum()):
        assert not gradient(loss, x).any()
        torch.testing.assert_close(fgsm(loss, x, epsilon=0.1, mean=MEAN, std=STD), x, rtol=0, atol=1e-12)
    assert weight.grad is None
    nan = fgsm(lambda images: images.sum() * torch.nan, x, epsilon=0.1, mean=MEAN, std=STD)
    torch.testing.assert_close(nan, x, rtol=0, atol=1e-12)


def test_sizes_that_disagree_are_told(pixels):
    _, loss = linear()
    with pytest.raises(ValueError, match="mean has 1 values; it should have 3, one per channel"):
        fgsm(loss, pixels, epsilon=0.1, mean=(0.5,), std=STD)
    with pytest.raises(ValueError, match=r"start has shape \(3, 4, 4\); it should be \(5, 3, 4, 4\)"):
        pgd(loss, pixels, pixels[0], epsilon=0.1, step_size=0.1, steps=1, mean=MEAN, std=STD)
