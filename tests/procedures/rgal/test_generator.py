import pytest
import torch

from icckd.procedures.rgal.generator import Generator, sizes_of, to_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [(8, [2, 4, 8]), (9, [3, 5, 9]), (32, [8, 16, 32]), (33, [5, 9, 17, 33]), (224, [7, 14, 28, 56, 112, 224])],
)
def test_sizes_double_up_to_the_image_s(size, expected):
    assert sizes_of(size) == expected


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 17), (6, 40)])
def test_pixels_of_any_size_lie_between_0_and_1_and_every_weight_learns(channels, size):
    torch.manual_seed(0)
    generator = Generator(noise=7, width=3, channels=channels, size=size)
    pixels = generator(torch.randn(5, 7))
    assert pixels.shape == (5, channels, size, size)
    assert 0 < pixels.min() < pixels.max() < 1
    pixels.square().sum().backward()
    for name, parameter in generator.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert generator.begin.weight.grad.abs().sum() > 0


def test_it_remembers_nothing_of_what_it_made():
    generator = Generator(noise=7, width=3, channels=1, size=8)
    before = {name: x.clone() for name, x in generator.state_dict().items()}
    generator(torch.randn(5, 7))
    assert all(torch.equal(x, before[name]) for name, x in generator.state_dict().items())


def test_bytes_are_rounded():
    assert to_bytes(torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0])).tolist() == [0, 0, 1, 255]
