"""What the page of a run on signals shows and says."""

import re

import pytest
import torch

from icckd.report.recipe import recipe
from icckd.report.results import read_results
from icckd.report.signal_chart import caption, signal_chart
from icckd.report.soft_labels import soft_label_section
from icckd.report.wording import measures, notes, title


@pytest.fixture
def on_signals(run):
    """A run on synthetic signals of eight channels, of which one is constant."""
    run.settings["data"]["name"] = "signals"
    run.summary["data"]["people"] = {"train": ["Ada", "Bo"], "test": ["Cy & Co"]}
    run.examples["images"] = torch.randn(3, 8, 1, 300, generator=run.generator)
    run.examples["images"][:, 2] = 5.0
    run.write()
    return run


def lines(chart):
    """The points of each line, as (n, 2)."""
    return [
        torch.tensor([[*map(float, point.split(","))] for point in points.split()])
        for points in re.findall(r'points="([^"]*)"', chart)
    ]


def test_a_line_is_where_its_values_are():
    signal = torch.tensor([[[0.0, 2.0, -2.0, 1.0, 9.0]], [[3.0] * 5]])
    first, second = lines(signal_chart(signal, torch.tensor([-2.0, 3.0]), torch.tensor([2.0, 3.0]), "a <window>"))
    assert first[:, 0].tolist() == [0, 64, 128, 192, 256]
    # A lane is 40 high, of which a twentieth is left at either edge; 9 is beyond the upper bound.
    for drawn, share in zip(first[:, 1].tolist(), [0.5, 1.0, 0.0, 0.75, 1.0], strict=True):
        assert drawn == pytest.approx(38 - 36 * share, abs=0.06)
    assert second[:, 1].tolist() == [60] * 5
    assert 'aria-label="a &lt;window&gt;"' in signal_chart(signal, torch.zeros(2), torch.ones(2), "a <window>")


def test_few_channels_and_points_of_many_are_drawn(on_signals):
    section = soft_label_section(read_results(on_signals.path))
    drawn = lines(section)
    assert [len(points) for points in drawn] == [256] * 6 * 3
    assert caption(8) == "Each line is a channel of the first 6 of 8, on one scale for all windows here."
    assert caption(8) in section
    assert caption(6) == "Each line is a channel, on one scale for all windows here."
    assert "Window 17, class " in section
    assert "<img" not in section
    # Each channel from its least to its largest value among all windows shown.
    heights = torch.stack([points[:, 1] for points in drawn]).unflatten(0, (3, 6))
    low, high = on_signals.examples["images"][:, :6, 0].transpose(0, 1).flatten(1).aminmax(dim=1)
    places = torch.linspace(0, 299, 256).round().long()
    shares = (on_signals.examples["images"][:, :6, 0, places] - low[:, None]) / (high - low)[:, None]
    expected = 38 - 36 * shares.nan_to_num(0.5) + 40 * torch.arange(6)[:, None]
    torch.testing.assert_close(heights, expected, atol=0.06, rtol=0)


def test_synthetic_signals_are_called_so(on_signals):
    results = read_results(on_signals.path)
    words = dict(recipe(results))
    assert words["People"] == "trained on 2; left out, and measured on, 1: Cy & Co"
    assert words["Training windows"].startswith("1,438, synthetic; ")
    assert title(results).endswith("on synthetic signals")
    assert any("synthetic" in note for note in notes(results))
    assert "of test windows, after the last epoch" in [measure.meaning for measure in measures(results)]
    on_signals.settings["data"]["root"] = "somewhere"
    on_signals.settings["data"]["validation"] = 0.25
    on_signals.write()
    results = read_results(on_signals.path)
    assert title(results).endswith("on signals")
    assert "synthetic" not in " ".join([*notes(results), *dict(recipe(results)).values()])
    assert "Measured on 25 % of the people to train on, held out, not on the test windows." in notes(results)


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (torch.full((3, 2, 1, 9), torch.nan), "images should be finite"),
        (torch.zeros(3, 2, 4, 9), r"it should be \(K, C, H, W\), of signals \(K, C, 1, L\)"),
        (torch.zeros(3, 2, 1, 9, dtype=torch.float64), "images is torch.float64"),
    ],
)
def test_examples_that_are_no_signals(on_signals, images, problem):
    on_signals.examples["images"] = images
    on_signals.write()
    with pytest.raises(ValueError, match=problem):
        read_results(on_signals.path)
