"""Variants that are drawn against a setting, and compared at the same value of it."""

import re

import numpy as np
import pytest
from scipy import stats

from icckd.report.comparison import write_comparison
from tests.report.comparison.conftest import ACCURACY, TEACHER, change, values_of
from tests.report.parsed import Page


def test_variants_are_drawn_against_a_setting_and_compared_at_the_same_value(make_runs):
    names = ("plain-0", "plain-40", "robust-0", "robust-40")
    runs = make_runs(variants=names, epochs=2, metrics=["teacher.test_accuracy"], against="data.train_fraction")
    for name, settings in runs.comparison.variants.items():
        settings.teacher.loss.weight = 0.1 if name.startswith("robust") else 0.0
        settings.data.train_fraction = 0.6 if name.endswith("40") else 1.0
    page, text, found = runs.pages()
    assert runs.comparison.lines() == [{0.6: "plain-40", 1.0: "plain-0"}, {0.6: "robust-40", 1.0: "robust-0"}]
    assert found["baselines"] == {"robust-0": "plain-0", "robust-40": "plain-40"}
    values = {name: of["teacher.test_accuracy"]["values"] for name, of in found["variants"].items()}
    differences = [values["robust-40"][seed] - values["plain-40"][seed] for seed in values["robust-40"]]
    assert found["differences"].keys() == {"robust-0", "robust-40"}
    mean = found["differences"]["robust-40"]["teacher.test_accuracy"]["mean"]
    assert mean == pytest.approx(sum(differences) / len(differences))
    assert "<h2>Against data.train_fraction</h2>" in page
    assert "their baseline of the same data.train_fraction (plain-0, plain-40)" in page
    assert "robust-40: higher than plain-40" in text
    # A chart of learning curves says which baseline it shows.
    assert all(f"test accuracy, {name} and others" in page for name in ("plain-0", "plain-40"))


def test_lines_of_which_nothing_is_finished_are_not_drawn(make_runs):
    names = ("plain-0", "plain-40", "robust-0", "robust-40")
    runs = make_runs(variants=names, seeds=(0,), metrics=["teacher.test_accuracy"], against="data.train_fraction")
    for name, settings in runs.comparison.variants.items():
        settings.teacher.loss.weight = 0.1 if name.startswith("robust") else 0.0
        settings.data.train_fraction = 0.6 if name.endswith("40") else 1.0
    for name in ("robust-0", "robust-40", "plain-0"):
        (runs.run(name, 0) / "summary.json").unlink()
    page, _, _ = runs.pages()
    described = page.split("<h2>Against data.train_fraction</h2>")[1].split("</section>")[0]
    assert "plain 0." in described
    assert "robust" not in described
    (runs.run("plain-40", 0) / "summary.json").unlink()
    runs.comparison.variants["robust-40"].data.train_fraction = 0.5
    page, _, _ = runs.pages()
    assert "<h2>Against data.train_fraction</h2>" not in page
    assert "of the same data.train_fraction, or plain-0 where there is none (plain-0, plain-40)" in page


@pytest.mark.parametrize("lines", [4, 5])
def test_lines_that_are_not_drawn_against_a_setting_are_counted(make_runs, lines):
    names = tuple(f"line{line}-{share}" for line in range(lines) for share in (40, 100))
    runs = make_runs(variants=names, seeds=(0, 1), metrics=["teacher.test_accuracy"], against="data.train_fraction")
    for name, settings in runs.comparison.variants.items():
        line, share = name.removeprefix("line").split("-")
        settings.teacher.loss.weight, settings.data.train_fraction = 0.1 * int(line), int(share) / 100
    page, _, _ = runs.pages()
    assert ("The first 4 of 5 lines." in page) == (lines == 5)


def test_one_line_against_a_setting_is_compared_with_the_baseline(make_runs):
    runs = make_runs(variants=("all", "half"), metrics=["teacher.test_accuracy"], against="data.train_fraction")
    for name, settings in runs.comparison.variants.items():
        settings.teacher.loss.weight = 0.0
        settings.data.train_fraction = 0.5 if name == "half" else 1.0
    page, _, found = runs.pages()
    assert found["differences"].keys() == {"half"}
    assert "one variant only" not in page


def by_method(make_runs, teachers=("plain", "intra", "strong"), methods=("kd", "kd+rkd", "none"), **choices):
    """Runs of every teacher, of growing weight, with every method, drawn against the methods."""
    names = tuple(f"{teacher}-{method}" for teacher in teachers for method in methods)
    runs = make_runs(variants=names, against="student.loss.method", **choices)
    for name, settings in runs.comparison.variants.items():
        teacher, settings.student.loss.method = name.split("-")
        settings.teacher.loss.weight = 0.1 * teachers.index(teacher)
    return runs


def test_variants_are_grouped_by_a_setting_of_texts_and_compared_at_the_same_one(make_runs):
    runs = by_method(make_runs, seeds=(0, 1, 2), metrics=[ACCURACY, TEACHER])
    (runs.run("strong-none", 0) / "summary.json").unlink()
    page, text, found = runs.pages()
    methods = ("kd", "kd+rkd", "none")
    assert found["baselines"] == {f"{teacher}-{m}": f"plain-{m}" for teacher in ("intra", "strong") for m in methods}
    ours, base = (values_of(runs, f"{teacher}-kd+rkd", ACCURACY) for teacher in ("intra", "plain"))
    difference = found["differences"]["intra-kd+rkd"][ACCURACY]
    assert difference["p"] == pytest.approx(stats.ttest_rel(ours, base).pvalue)
    assert difference["mean"] == pytest.approx(np.subtract(ours, base).mean())
    assert "their baseline of the same student.loss.method (plain-kd, plain-kd+rkd, plain-none)" in text
    section = page.split("<h2>Against student.loss.method</h2>")[1].split("</section>")[0]
    labels = [svg["aria-label"] for svg in Page(section).all("svg") if "aria-label" in svg]
    assert [label.split(":")[0] for label in labels] == ["kd", "kd+rkd", "none"] * 2
    for place, teacher in enumerate(("plain", "intra", "strong")):
        of = found["variants"][f"{teacher}-kd+rkd"][ACCURACY]
        words = labels[1].removeprefix("kd+rkd: ").split("; ")[place]
        assert words.startswith(f"{teacher} {100 * of['mean']:.2f} %, 95 % interval ")
    assert re.findall(r'<li class="([^"]*)">([^<]*)', section) == [
        ("ink", "plain"), ("series-1", "intra"), ("series-2", "strong")
    ]  # fmt: skip
    groups = re.findall(r"<tr><th.*?</tr>", section.split("<tbody>")[1])
    assert [re.findall(r'<g class="([^"]*)"', group) for group in groups] == [["ink", "series-1", "series-2"]] * 3
    drawn = re.findall(r'<svg class="interval ([^"]*)" role="img" aria-label="([^:"]*): mean', page)
    colours = {"plain": "ink", "intra": "series-1", "strong": "series-2"}
    assert drawn == [(colours[name.split("-")[0]], name) for name in runs.comparison.variants] * 2


def test_metrics_of_which_nothing_is_known_have_no_groups(make_runs):
    runs = by_method(make_runs, ("plain", "intra"), ("kd", "none"), seeds=(0, 1), metrics=[ACCURACY, TEACHER])
    for summary in runs.summaries.values():
        summary["teacher"]["test_accuracy"] = None
    runs.write()
    section = runs.pages()[0].split("<h2>Against student.loss.method</h2>")[1].split("</section>")[0]
    assert "Student&#x27;s test accuracy" in section
    assert "Teacher&#x27;s" not in section
    for key in runs.summaries:
        (runs.run(*key) / "summary.json").unlink()
    assert "<h2>Against" not in runs.pages()[0]


def test_many_differences_are_one_table_and_their_sentences_short(make_runs):
    teachers = ("plain", "a", "b", "c", "d")
    runs = by_method(make_runs, teachers, ("kd", "kd+rkd"), seeds=(0, 1, 2, 3), metrics=[ACCURACY, TEACHER])
    for name in runs.comparison.variants:
        change(runs, name, TEACHER, [0.5, 0.51, 0.52, 0.5] if name == "a-kd" else [0.5, 0.53, 0.5, 0.52])
        change(runs, name, ACCURACY, 0.7 + 0.001 * runs.rng.standard_normal(4))
    for place, name in enumerate(["a-kd+rkd", *(f"{teacher}-kd" for teacher in teachers[1:])]):
        base = values_of(runs, f"plain-{name.split('-')[1]}", ACCURACY)
        gained = 0.1 + 0.01 * place + 1e-4 * runs.rng.standard_normal(4) if place else [0.004, 0.01, 0.015, 0.018]
        change(runs, name, ACCURACY, np.add(base, gained))
    runs.write()
    page, text, found = runs.pages()
    assert "# a, b, c and d against plain by student.loss.method on digits" in text
    section = page.split("<h2>What can be concluded</h2>")[1].split("</section>")[0]
    rows = re.findall(r"<tr>(<th scope=\"row.*?)</tr>", section)
    assert [re.findall(r">([^<>]+)</th>", row) for row in rows] == [
        ["kd", "a"], ["b"], ["c"], ["d"], ["kd+rkd", "a"], ["b"], ["c"], ["d"]
    ]  # fmt: skip
    cells = [re.findall(r'<td class="number([^"]*)">([^<]*)', row) for row in rows]
    for variant, (first, _) in zip([f"{t}-{m}" for m in ("kd", "kd+rkd") for t in teachers[1:]], cells, strict=True):
        of = found["differences"][variant][ACCURACY]
        assert first[1].rstrip("*") == f"{100 * of['mean']:+.2f}".replace("-", "−")
        assert (first[0] == " quiet") == (of["p"] > 0.05)
    assert [first[0] for first, _ in cells[:4]] == [" changed"] * 4
    assert cells[4][0][1].endswith("*")
    assert [of[1] for _, of in cells[1:]] == ["0.00"] * 7
    assert "higher than their baselines: a-kd (" in text
    assert "the same as their baselines: 7 variants" in text
    assert page.count("<details open>") == 1
    assert '<details><summary><span class="series-1">a-kd</span></summary>' in page


def test_teachers_that_variants_share_are_tested_once(make_runs):
    methods = ("kd", "kd+rkd", "none")
    runs = by_method(make_runs, ("plain", "intra"), methods, metrics=[ACCURACY, TEACHER])
    for name in runs.comparison.variants:
        shared = f"{name.split('-')[0]}-kd"
        change(runs, name, TEACHER, values_of(runs, shared, TEACHER))
    runs.write()
    results = write_comparison(runs.path, runs.comparison)
    assert results.tests == 4
    students = [of[ACCURACY].p for of in results.differences.values()]
    several = sorted([*students, results.differences["intra-kd"][TEACHER].p])
    expected = np.minimum(np.maximum.accumulate([(4 - rank) * value for rank, value in enumerate(several)]), 1)
    of = dict(zip(several, expected, strict=True))
    for by_metric in results.differences.values():
        for difference in by_metric.values():
            assert difference.adjusted == pytest.approx(of[difference.p])
    assert "4 differences to their baseline" in (runs.path / "compare.md").read_text()
    section = (runs.path / "compare.html").read_text().split("<h2>Against")[1].split("</section>")[0]
    labels = [
        svg["aria-label"] for svg in Page(f"<p>{section.split('</h2>')[1]}</p>").all("svg") if "aria-label" in svg
    ]
    assert [label.split(":")[0] for label in labels] == [*methods, "all"]
