"""The curves' SVG: coloured by the page, isolated from other figures, without matplotlib's traces."""

import re
import xml.etree.ElementTree as ElementTree

from icckd.report.figures import Chart, Curve, line_chart
from icckd.report.markdown import sparkline


def chart(**options):
    values = [0.5, None, 0.25, 0.005]
    return draw("loss", [Curve("total", "teacher", [1, 2, 3, 4], values)], **options)


def draw(name, curves, **options):
    return line_chart(Chart(name, "", "", curves, **options))


def test_colours_are_the_pages_variables():
    svg = chart(threshold=0.2)
    assert set(re.findall(r"var\((--\w+)\)", svg)) == {"--teacher", "--ink", "--faint"}
    assert not re.search(r"#0{5}\d", svg)


def test_svg_is_one_element_without_foreign_names():
    svg = chart()
    assert ElementTree.fromstring(svg.replace("xlink:href", "href")).tag == "svg"
    assert "http" not in svg
    assert all(name.startswith("loss-") for name in re.findall(r'\bid="([^"]*)"', svg))


def test_same_values_same_text_whatever_was_drawn_before():
    first = chart()
    draw("other", [Curve("x", "student", [1, 2], [3, 4])], percent=True)
    assert chart() == first


def test_axes_are_logarithmic_only_where_values_span_much():
    assert ">0.01<" in chart(logarithmic=True)
    assert ">0.01<" not in chart()
    flat = [Curve("total", "teacher", [1, 2], [0.5, 0.4])]
    assert draw("a", flat, logarithmic=True) == draw("a", flat)
    negative = [Curve("total", "teacher", [1, 2], [-0.5, 400])]
    assert draw("a", negative, logarithmic=True) == draw("a", negative)


def test_fractions_can_be_percentages_and_epochs_are_whole():
    svg = draw("accuracy", [Curve("teacher", "teacher", [1, 2], [0.0, 1.0])], percent=True)
    labels = re.findall(r">([^<>]+)</text>", svg)
    assert "100%" in labels
    assert {"1", "2"} <= set(labels)
    assert "1.5" not in labels


def test_sparkline_runs_from_smallest_to_largest():
    assert sparkline([0.0, 1.0, None, 0.5]) == "▁█ ▅"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([]) == ""
    assert len(sparkline([float(i) for i in range(500)])) == 30


def test_a_single_epoch_is_marked_as_one():
    svg = draw("accuracy", [Curve("teacher", "teacher", [1], [0.5])])
    assert re.findall(r">([^<>]+)</text>", svg.partition(">epoch<")[0]) == ["1"]


def test_a_legend_has_as_many_columns_as_there_is_room_for():
    def columns(*labels):
        svg = draw("loss", [Curve(label, "teacher", [1, 2], [3, 4]) for label in labels])
        return len({re.search(r' x="([\d.]+)"[^>]*>' + label, svg).group(1) for label in labels})

    assert columns("total", "features", "triplet") == 3
    assert columns("total", "cross-entropy", "reconstruction", "spectrum") == 2
    assert columns("total", "adversarial divergence", "natural divergence") == 1
