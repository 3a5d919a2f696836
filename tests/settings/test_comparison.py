"""The definition of a comparison: what may stand in its file, and what is said of what may not."""

import math
import re
from dataclasses import replace

import pytest
import yaml

from icckd.errors import UserError
from icckd.settings import Comparison, Settings, comparison_from, read_comparison, settings_from
from icckd.settings.comparison import place_of

GIVEN = {
    "base": {"data": {"name": "digits"}, "teacher.epochs": 3},
    "variants": {"ce": {"teacher.loss.weight": 0}, "intra": {"teacher": {"loss": {"weight": 0.5}}}, "default": None},
    "baseline": "ce",
    "seeds": [0, 7],
}


def given(**changes):
    return {key: value for key, value in {**GIVEN, **changes}.items() if value != "left out"}


def test_nested_and_dotted_settings_and_defaults():
    comparison = comparison_from(GIVEN, "c.yaml")
    assert {name: of.teacher.loss.weight for name, of in comparison.variants.items()} == {
        "ce": 0.0,
        "intra": 0.5,
        "default": Settings().teacher.loss.weight,
    }
    assert all(of.teacher.epochs == 3 for of in comparison.variants.values())
    assert comparison.metrics == ["student.test_accuracy", "teacher.test_accuracy", "teacher.distance_ratio"]
    assert comparison.settings("intra", 7) == replace(comparison.variants["intra"], seed=7)
    assert comparison.differing() == {
        "ce": {"teacher.loss.weight": 0.0},
        "intra": {"teacher.loss.weight": 0.5},
        "default": {"teacher.loss.weight": 0.02},
    }


def test_what_the_command_line_gives_lies_over_the_base_and_under_the_variants():
    comparison = comparison_from(GIVEN, "c.yaml", {"teacher.epochs": 9, "teacher.loss.weight": 0.25}, [4])
    assert {of.teacher.epochs for of in comparison.variants.values()} == {9}
    assert [of.teacher.loss.weight for of in comparison.variants.values()] == [0.0, 0.5, 0.25]
    assert comparison.seeds == [4]


def test_stages_are_those_that_metrics_ask_for():
    assert comparison_from(GIVEN, "c.yaml").stages == ("teacher", "student")
    assert comparison_from(given(metrics=["teacher.recall_at_1"]), "c.yaml").stages == ("teacher",)


def test_presets_are_resolved_for_each_variant(tmp_path):
    base = {"preset": "paper", "data.name": "cifar100"}
    comparison = comparison_from(
        given(base=base, variants={"a": {"teacher.arch": "resnet56"}, "ce": {"teacher.epochs": 2}}), "c.yaml"
    )
    assert [of.teacher.epochs for of in comparison.variants.values()] == [240, 2]
    assert comparison.variants["a"] == settings_from({**base, "teacher.arch": "resnet56"}, "x")


def test_a_definition_that_is_written_is_read_again(tmp_path):
    comparison = comparison_from(
        given(smallest_difference={"student.test_accuracy": 0.01}), "c.yaml", {"data.root": "λ"}
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(comparison.definition()))
    assert read_comparison(tmp_path / "c.yaml") == comparison


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": 1}, "baselines is no key of a comparison; did you mean baseline"),
        ({"x": 1}, "x is no key of a comparison; the keys are base, "),
        ({"variants": "left out"}, "variants is missing"),
        ({"variants": {}}, "variants is empty"),
        ({"variants": ["ce"]}, "variants should hold names and values, not list"),
        ({"variants": {1: {}}}, "the name 1 is read as int; put it in quotes"),
        ({"variants": {"a/b": {}}}, "'a/b' cannot be a folder's name"),
        ({"variants": {"..": {}}}, "'..' cannot be a folder's name"),
        ({"variants": {"ce": {}, "CE": {}}}, "ce and CE differ in case alone"),
        ({"variants": {"ce": {"seed": 1}}}, "variants.ce: seed is given"),
        ({"variants": {"ce": {"device": "cpu"}}}, "variants.ce: device is given"),
        ({"variants": {"ce": {"teacher": {"epoch": 3}}}}, "variants.ce: .*epoch"),
        ({"variants": {"ce": {"teacher.epochs": "many"}}}, "variants.ce: teacher.epochs: .*many"),
        ({"variants": {"ce": {"teacher": {"epochs": 1}, "teacher.epochs": 2}}}, "ce: teacher.epochs is given twice"),
        ({"variants": {"ce": {"preset": "paper"}, "b": {"preset": "fast"}}}, "never compared in one table"),
        ({"base": {"seed": 3}}, "base: seed is given"),
        ({"base": {"student.loss.weight": 3}}, "is now called student.loss.kd.weight"),
        ({"base": [1]}, "base should hold names"),
        ({"baseline": "left out"}, "baseline is missing"),
        ({"baseline": "kd"}, "baseline is 'kd'; it should be one of ce, intra, default"),
        ({"baseline": ["ce"]}, "baseline is "),
        ({"seeds": "left out"}, "seeds should be a list"),
        ({"seeds": []}, "seeds should be a list"),
        ({"seeds": 3}, "seeds should be a list"),
        ({"seeds": [1, 1]}, "seeds holds 1 twice"),
        ({"seeds": [-1]}, "seeds holds -1"),
        ({"seeds": [True]}, "seeds holds True"),
        ({"seeds": [0.5]}, "seeds holds 0.5"),
        ({"seeds": [2**63]}, "seeds holds 9223372036854775808"),
        ({"metrics": []}, "metrics should be a list"),
        ({"metrics": ["test_accuracy"]}, "metrics holds 'test_accuracy'"),
        ({"metrics": ["teacher.seconds", "teacher.seconds"]}, "metrics holds teacher.seconds twice"),
        ({"smallest_difference": {"teacher.seconds": 1}}, "teacher.seconds is none of the metrics"),
        ({"base": {"data": 3}}, "data is 3; it should hold settings by name"),
        ({"smallest_difference": {"teacher.test_accuracy": 10**400}}, "it should be a number above 0"),
        ({"smallest_difference": {"teacher.test_accuracy": 0}}, "test_accuracy is 0; it should be a number above 0"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(changes, message):
    with pytest.raises(UserError, match=rf"c\.yaml.*{message}"):
        comparison_from(given(**changes), "c.yaml")


@pytest.mark.parametrize("text", ["", "[", "1", "\x00", "variants: &a {x: *a}\nbaseline: x\nseeds: [0]", "[" * 5000])
def test_a_file_that_is_none(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml"):
        read_comparison(tmp_path / "c.yaml")


@pytest.mark.parametrize("text", ["variants: {ce: {}, ce: {}}", "base: {teacher: {epochs: 1, epochs: 2}}"])
def test_a_name_that_is_given_twice_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml.* is given twice"):
        read_comparison(tmp_path / "c.yaml")


def test_a_merged_mapping_may_be_overridden(tmp_path):
    text = "base: &b {teacher.epochs: 2}\nvariants: {a: *b, c: {<<: *b, teacher.epochs: 3}}\nbaseline: a\nseeds: [0]"
    (tmp_path / "c.yaml").write_text(text)
    variants = read_comparison(tmp_path / "c.yaml").variants
    assert [of.teacher.epochs for of in variants.values()] == [2, 3]


def test_a_small_difference_without_a_point_is_a_number(tmp_path):
    text = "variants: {a: {}}\nbaseline: a\nseeds: [0]\nsmallest_difference: {student.test_accuracy: 5e-3}"
    (tmp_path / "c.yaml").write_text(text)
    assert read_comparison(tmp_path / "c.yaml").smallest_difference == {"student.test_accuracy": 0.005}


def test_settings_that_are_no_numbers_are_alike():
    settings = settings_from({"teacher.loss.weight": float("nan")}, "x")
    assert Comparison({"a": settings, "b": settings}, "a", [0]).differing() == {"a": {}, "b": {}}


def test_against_is_a_setting_in_which_the_variants_differ():
    variants = {f"noise-{share}": {"data.train_fraction": share} for share in (0.5, 1.0)}
    values = {"variants": variants, "baseline": "noise-0.5", "seeds": [0], "against": "data.train_fraction"}
    comparison = comparison_from(values, "test")
    assert comparison.lines() == [{0.5: "noise-0.5", 1.0: "noise-1.0"}]
    assert comparison_from(comparison.definition(), "test") == comparison
    for against, words in (
        ("data.name", "should be a setting in which the variants differ"),
        (3, "should be"),
        ([], "should"),
    ):
        with pytest.raises(UserError, match=words):
            comparison_from({**values, "against": against}, "test")
    variants |= {"again": {"data.train_fraction": 0.5}}
    with pytest.raises(UserError, match=r"two variants of one line lie at 0\.5 on it: one is noise-0\.5"):
        comparison_from(values, "test")


def test_against_texts_lines_are_in_the_order_of_the_file():
    methods = ("kd+rkd", "kd", "kd+crd", "none")
    own = {"kd+crd": {"student.loss.crd.weight": 0.5}}
    variants = {
        f"{teacher}-{method}": {"teacher.loss.weight": weight, "student.loss.method": method, **own.get(method, {})}
        for teacher, weight, of in (("intra", 0.1, methods[:3]), ("plain", 0, methods), ("strong", 0.5, methods[1:]))
        for method in of
    }
    values = {"variants": variants, "baseline": "plain-kd", "seeds": [0], "against": "student.loss.method"}
    comparison = comparison_from(values, "test")
    # What goes with a method, as crd's weight, is no difference between lines.
    assert [list(line.items()) for line in comparison.lines()] == [
        [(method, f"{teacher}-{method}") for method in of]
        for teacher, of in (("plain", methods), ("intra", methods[:3]), ("strong", methods[1:]))
    ]
    expected = {name: re.sub("intra|strong", "plain", name) for name in variants}
    assert comparison.baselines() == expected
    assert comparison_from(comparison.definition(), "test") == comparison
    assert comparison.order() == ["kd+rkd", "kd", "kd+crd", "none"]
    del variants["plain-kd+rkd"]
    assert comparison_from(values, "test").baselines() == {
        **{name: baseline for name, baseline in expected.items() if name in variants},
        "intra-kd+rkd": "plain-kd",
    }


def test_values_of_which_one_is_no_number_are_texts():
    shares = ([0.5, 1.0], None, [1.0, 1.0])
    variants = {f"v{i}": {"data.augmentation.resized_crop": share} for i, share in enumerate(shares)}
    values = {"variants": variants, "baseline": "v0", "seeds": [0], "against": "data.augmentation.resized_crop"}
    assert list(comparison_from(values, "test").lines()[0]) == [0.0, 0.5, 1.0]
    variants = {f"v{i}": {"data.augmentation.flip": flip} for i, flip in enumerate((True, None, False))}
    values |= {"variants": variants, "against": "data.augmentation.flip"}
    assert list(comparison_from(values, "test").lines()[0]) == ["true", "null", "false"]


def test_a_value_s_place_is_its_number():
    values = (None, 0.3, 2, "symmetric:0.4", "partial:0.1", [0.08, 1.0], "digits", "a:nan", math.inf, [])
    assert [place_of(value) for value in values] == [0.0, 0.3, 2.0, 0.4, 0.1, 0.08, *[None] * 4]
