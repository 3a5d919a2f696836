import torch
from torch import nn

from icckd.procedures.rgal.statistics import distances_of_statistics, normalisations_of


def network():
    torch.manual_seed(4)
    made = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(),
        nn.BatchNorm1d(3 * 16), nn.Linear(3 * 16, 4),
    )  # fmt: skip
    for layer in (made[1], made[5]):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    return made.double().eval()


def by_hand(layer, maps):
    """The distance of one layer, channel by channel."""
    squares = [torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
    for channel in range(maps.shape[1]):
        numbers = maps[:, channel].flatten()
        mean = sum(numbers) / len(numbers)
        variance = sum((x - mean) ** 2 for x in numbers) / len(numbers)
        squares[0] = squares[0] + (mean - layer.running_mean[channel]) ** 2
        squares[1] = squares[1] + (variance - layer.running_var[channel]) ** 2
    return squares[0].sqrt() + squares[1].sqrt()


def test_distances_are_a_loop_s_and_have_its_gradient():
    asked = network()
    images = torch.randn(3, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    with distances_of_statistics(asked) as found:
        asked(images)
    assert len(found) == len(normalisations_of(asked)) == 2
    expected = by_hand(asked[1], asked[0](images)), by_hand(asked[5], asked[:5](images))
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    gradients = [torch.autograd.grad(sum(distances), images)[0] for distances in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_nothing_is_left_behind():
    asked = network()
    with distances_of_statistics(asked) as found:
        pass
    asked(torch.randn(3, 2, 6, 6, dtype=torch.float64))
    assert found == []
    assert not asked[1]._forward_pre_hooks


def test_images_with_the_remembered_statistics_are_at_distance_0():
    layer = nn.BatchNorm2d(3, momentum=1.0).double()
    maps = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    layer(maps)
    layer.running_var *= (maps.numel() / 3 - 1) / (maps.numel() / 3)  # It remembers the unbiased one.
    with distances_of_statistics(layer) as found:
        layer.eval()(maps)
    torch.testing.assert_close(found[0], torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-9)
