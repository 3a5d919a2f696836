"""compare.json, compare.csv, compare.md and compare.html: their numbers, words, and folders that are not whole."""

import csv
import json
import re

import numpy as np
import pytest
from scipy import stats

from icckd.errors import UserError
from icckd.report.comparison import write_comparison
from icckd.report.comparison.curves import charts
from tests.report.comparison.conftest import ACCURACY, CLASSES, TEACHER, change, values_of
from tests.report.parsed import Page


def only(run):
    """Leave nothing but summary.json."""
    for path in sorted(run.rglob("*"), reverse=True):
        if path.name != "summary.json":
            path.rmdir() if path.is_dir() else path.unlink()


def test_json_has_scipys_statistics_of_every_metric(runs):
    *_, found = runs.pages()
    assert list(found) == ["baseline", "seeds", "variants", "differences", "unfinished"]
    assert (found["baseline"], found["seeds"], found["unfinished"]) == ("plain", [0, 1, 2, 5], [])
    assert list(found["variants"]) == ["plain", "intra", "strong"]
    assert list(found["differences"]) == ["intra", "strong"]
    for variant, by_metric in found["variants"].items():
        assert list(by_metric) == runs.comparison.metrics
        for metric, of in by_metric.items():
            values = values_of(runs, variant, metric)
            assert of["values"] == dict(zip(("0", "1", "2", "5"), values, strict=True))
            assert (of["mean"], of["sd"], of["n"]) == pytest.approx((np.mean(values), np.std(values, ddof=1), 4))
    for variant, by_metric in found["differences"].items():
        for metric, of in by_metric.items():
            values, base = values_of(runs, variant, metric), values_of(runs, "plain", metric)
            expected = stats.ttest_rel(values, base)
            interval = expected.confidence_interval(0.95)
            assert of == pytest.approx(
                {
                    "mean": np.subtract(values, base).mean(),
                    "low": interval.low,
                    "high": interval.high,
                    "n": 4,
                    "p": expected.pvalue,
                }
            )


def test_csv_has_a_row_a_run(runs):
    runs.summaries["intra", 5]["teacher"]["distance_ratio"] = None
    runs.write()
    (runs.run("strong", 2) / "summary.json").unlink()
    runs.pages()
    with (runs.path / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["variant", "seed", *runs.comparison.metrics]
    assert [(row["variant"], int(row["seed"])) for row in rows] == list(runs.summaries)
    by_run = {(row["variant"], int(row["seed"])): row for row in rows}
    assert float(by_run["plain", 1][ACCURACY]) == runs.summaries["plain", 1]["student"]["test_accuracy"]
    assert by_run["intra", 5]["teacher.distance_ratio"] == ""
    assert [by_run["strong", 2][metric] for metric in runs.comparison.metrics] == ["", "", ""]


def test_pages_show_means_intervals_and_p_values(runs):
    page, markdown, found = runs.pages()
    for text in (Page(page).text, markdown):
        for variant, of in found["differences"].items():
            numbers = of[ACCURACY]
            assert f"{100 * numbers['mean']:+.2f}".replace("-", "−") in text
            assert f"{100 * numbers['low']:+.2f} to {100 * numbers['high']:+.2f}".replace("-", "−") in text
            assert f"{100 * found['variants'][variant][ACCURACY]['mean']:.2f} %" in text
            assert f"{100 * found['variants'][variant][ACCURACY]['sd']:.2f}" in text
            assert f"{numbers['p']:.3f}" in text or numbers["p"] < 0.001
        assert f"{found['differences']['intra']['teacher.distance_ratio']['mean']:+.4f}".replace("-", "−") in text


def test_lines_of_a_markdown_table_are_equally_long(runs):
    tables = re.findall(r"(?:^\|.*\n)+", runs.pages()[1], flags=re.MULTILINE)
    assert len(tables) == 2 * len(runs.comparison.metrics)
    assert all(len({len(line) for line in table.splitlines()}) == 1 for table in tables)


def test_a_real_difference_is_called_higher_and_a_small_one_too_small(make_runs):
    runs = make_runs(metrics=[ACCURACY])
    change(runs, "plain", ACCURACY, [0.700, 0.701, 0.699, 0.702])
    change(runs, "intra", ACCURACY, [0.720, 0.722, 0.718, 0.721])
    change(runs, "strong", ACCURACY, [0.702, 0.699, 0.700, 0.701])
    runs.write()
    page, markdown, found = runs.pages()
    interval = stats.ttest_rel([0.702, 0.699, 0.700, 0.701], [0.700, 0.701, 0.699, 0.702]).confidence_interval(0.95)
    for text in (Page(page).text, markdown):
        assert (
            "higher than plain: intra (+1.98 points); no difference from plain as large as 0.50 points: strong" in text
        )
        assert "higher than plain by 1.98 points" in text
        assert "It stands after Holm's correction" in text
        assert f"rules out more than {100 * interval.high:.2f} points higher and more than " in text
        assert f"more than {-100 * interval.low:.2f} points lower. Both are less than the 0.50 points" in text
    assert found["differences"]["intra"][ACCURACY]["p"] < 0.001


def test_what_does_not_stand_after_holms_correction_is_a_hint(make_runs):
    runs = make_runs(variants=("plain", "a", "b", "c"), metrics=[ACCURACY])
    change(runs, "plain", ACCURACY, [0.70, 0.71, 0.69, 0.70])
    change(runs, "a", ACCURACY, [0.71, 0.73, 0.70, 0.73])
    for variant in ("b", "c"):
        change(runs, variant, ACCURACY, [0.71, 0.70, 0.70, 0.69])
    runs.write()
    _, markdown, found = runs.pages()
    assert 0.05 / 3 < found["differences"]["a"][ACCURACY]["p"] < 0.05
    assert "higher than plain, though not after Holm's correction: a (+1.75 points)" in markdown
    assert "It does not stand after Holm's correction" in markdown
    assert "b and c: not told apart from plain" in markdown
    assert "3 differences to plain are tested" in markdown
    assert "with a chance of 14 %" in markdown


def test_seeds_that_a_difference_needs_are_said_for_shares_and_for_what_is_asked(make_runs):
    asked = {"teacher.distance_ratio": 0.1}
    metrics = [ACCURACY, "teacher.distance_ratio", "teacher.soft_label_entropy", "student.recall_at_1"]
    runs = make_runs(metrics=metrics, smallest_difference=asked)
    _, markdown, _ = runs.pages()
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", markdown, flags=re.MULTILINE | re.DOTALL))
    assert "seeds for 0.50 points" in parts["Student's test accuracy"]
    assert "seeds for 0.1000" in parts["Teacher's distance ratio"]
    assert "seeds for" not in parts["Teacher's soft label entropy"]
    assert "seeds for 0.50 points" in parts["Student's recall at 1"]


def test_one_seed_allows_no_conclusion(make_runs):
    page, markdown, found = make_runs(seeds=(3,)).pages()
    for text in (Page(page).text, markdown):
        assert "nothing can be concluded: intra and strong" in text
        assert "only one finished pair of runs has this value" in text
    difference = found["differences"]["intra"][ACCURACY]
    assert difference["mean"] is not None
    assert [difference[key] for key in ("low", "high", "p", "n")] == [None, None, None, 1]
    assert found["variants"]["intra"][ACCURACY]["sd"] is None


def test_nothing_finished_is_a_comparison_too(make_runs):
    runs = make_runs()
    for key in runs.summaries:
        (runs.run(*key) / "summary.json").unlink()
    page, markdown, found = runs.pages()
    assert len(found["unfinished"]) == 12
    assert found["variants"]["plain"][ACCURACY] == {"values": {}, "mean": None, "sd": None, "n": 0}
    assert set(found["differences"]["intra"][ACCURACY].values()) == {None, 0}
    assert "0 of 12 runs are finished; plain/0, plain/1, plain/2, plain/5, intra/0 and 7 more are not" in markdown
    assert "no finished pair of runs has this value" in Page(page).text
    assert not (runs.path / "none").exists()


def test_a_folder_that_is_not_there_yet_is_nothing_finished(make_runs, tmp_path):
    comparison = make_runs().comparison
    assert len(write_comparison(tmp_path / "new", comparison).unfinished) == 12


def test_runs_without_the_student_are_not_finished_where_it_is_compared(runs):
    del runs.summaries["intra", 0]["student"]
    runs.write()
    page, markdown, found = runs.pages()
    assert found["unfinished"] == ["intra/0"]
    assert found["variants"]["intra"][TEACHER]["n"] == 3
    assert found["differences"]["intra"][TEACHER]["n"] == 3
    assert "11 of 12 runs are finished; intra/0 is not." in markdown
    assert "not finished" in Page(page).text


def test_teachers_alone_are_compared_without_students(make_runs):
    runs = make_runs(metrics=[TEACHER])
    for summary in runs.summaries.values():
        del summary["student"]
    runs.write()
    page, _, found = runs.pages()
    assert found["unfinished"] == []
    assert "The teacher's accuracy on each class" in Page(page).text


def test_summaries_alone_are_enough(make_runs):
    runs = make_runs(epochs=2, metrics=[TEACHER])
    before = runs.pages()[2]
    for key in runs.summaries:
        only(runs.run(*key))
    page, _, found = runs.pages()
    assert found == before
    assert "Learning curves" not in page
    assert "report.html" not in page
    assert "Differences by class" in page
    assert CLASSES[0] not in page


def test_unknown_values_are_left_out_and_never_counted(runs):
    for place, value in enumerate((None, float("nan"), float("inf"), 10**400)):
        runs.summaries["intra", runs.comparison.seeds[place]]["teacher"]["distance_ratio"] = value
    runs.summaries["strong", 0]["teacher"]["distance_ratio"] = "0.5"
    runs.write()
    *_, found = runs.pages()
    assert found["variants"]["intra"]["teacher.distance_ratio"] == {"values": {}, "mean": None, "sd": None, "n": 0}
    assert list(found["variants"]["strong"]["teacher.distance_ratio"]["values"]) == ["1", "2", "5"]
    assert found["variants"]["intra"][ACCURACY]["n"] == 4


def test_the_same_values_and_shared_teachers_are_said_to_be_the_same(make_runs):
    runs = make_runs(epochs=2, metrics=[TEACHER])
    for (_, seed), summary in runs.summaries.items():
        summary["teacher"] = runs.summaries["plain", seed]["teacher"]
    runs.write()
    for key in runs.summaries:
        (runs.run(*key) / "metrics.jsonl").write_bytes((runs.run("plain", key[1]) / "metrics.jsonl").read_bytes())
    page, markdown, found = runs.pages()
    assert "Teacher's test accuracy: the same as plain: intra and strong." in markdown
    assert found["differences"]["intra"][TEACHER]["p"] is None
    assert ">plain, intra, strong</text>" in page


def test_the_largest_class_differences_come_first(runs):
    for seed in runs.comparison.seeds:
        base = runs.summaries["plain", seed]["student"]["per_class_accuracy"]
        for variant, gained, lost in (("intra", 7, 18), ("strong", 11, 2)):
            accuracies = [value + 0.001 * runs.rng.standard_normal() for value in base]
            accuracies[gained] += 2.0
            accuracies[lost] -= 2.0
            runs.summaries[variant, seed]["student"]["per_class_accuracy"] = accuracies
    runs.write()
    page = runs.pages()[0]
    section = page[page.index("Differences by class") : page.index("<h2>Runs")]
    tables = re.findall(r"<tbody>\n(.*?)</tbody>", section, flags=re.DOTALL)
    firsts = [re.search(r'<th scope="row">(.*?)</th>', table).group(1) for table in tables]
    # Gains, losses, and what is folded away, of each variant.
    assert (firsts[0], firsts[1], firsts[3], firsts[4]) == ("class-07", "class-18", "class-11", "class-02")
    assert section.count("The other 8 classes") == 2
    accuracies = [
        [runs.summaries[name, seed]["student"]["per_class_accuracy"][7] for seed in runs.comparison.seeds]
        for name in ("intra", "plain")
    ]
    interval = stats.ttest_rel(*accuracies).confidence_interval(0.95)
    assert f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}" in section


def test_class_accuracies_of_other_classes_are_not_compared(runs):
    for seed in runs.comparison.seeds:
        runs.summaries["intra", seed]["student"]["per_class_accuracy"] = [0.5, 0.6]
        runs.summaries["strong", seed]["student"]["per_class_accuracy"] = []
    runs.write()
    assert "Differences by class" not in runs.pages()[0]


def test_learning_curves_of_any_length_and_many_variants(make_runs):
    runs = make_runs(seeds=(0, 1), variants=("plain", "a", "b", "c", "d"), metrics=[TEACHER], epochs=4)
    histories = {("plain", 0): [], ("a", 1): [0.5], ("b", 0): [None, float("nan"), 0.4], ("c", 1): [0.1] * 300}
    for key, values in histories.items():
        lines = [{"stage": "teacher", "epoch": i, "test_accuracy": v} for i, v in enumerate(values, start=1)]
        (runs.run(*key) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(runs.pages()[0])
    figures = [attributes["aria-label"] for attributes in page.all("svg") if "viewbox" in attributes]
    # Three variants and the baseline in one chart, what is left in another, each beside the same less the baseline.
    assert len(figures) == 4
    assert all(f"{name} " in figures[0] for name in ("plain", "a", "b", "c"))
    assert all(f"{name} " in figures[2] for name in ("plain", "d"))
    assert " less that of plain: d " in figures[3]


def test_the_page_needs_nothing_but_itself_and_links_to_its_runs(make_runs):
    runs = make_runs(epochs=3, metrics=[TEACHER])
    (runs.run("intra", 1) / "report.html").unlink()
    html = runs.pages()[0]
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "base", "img"} & {tag for tag, _ in page.tags}
    assert any("default-src 'none'" in attributes.get("content", "") for attributes in page.all("meta"))
    assert not re.search(r"https?://|url\((?!#)|@import", html)
    links = [attributes["href"] for attributes in page.all("a")]
    assert links == [f"runs/{v}/{s}/report.html" for v, s in runs.summaries if (v, s) != ("intra", 1)]
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_the_page_is_accessible(make_runs):
    page = Page(make_runs(epochs=1, metrics=[TEACHER]).pages()[0])
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("title")) == len(page.all("h1")) == 1
    assert all(svg.get("aria-label") or svg.get("aria-hidden") == "true" for svg in page.all("svg"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    labels = [svg["aria-label"] for svg in page.all("svg") if "aria-label" in svg]
    assert any(re.fullmatch(r"intra: \+.* points, 95 % interval .* to .*", label) for label in labels)


def test_settings_and_environments_are_shown(runs):
    runs.summaries["intra", 0]["environment"]["device"] = "cuda: another"
    runs.write()
    page, markdown, _ = runs.pages()
    text = Page(page).text
    assert "teacher.loss.weight" in text
    assert "student.arch" in text
    assert "cuda: another (1 of 12 runs)" in text
    for shown in (text, markdown):
        assert "different environments (device)" in shown
        assert "date" not in re.findall(r"different environments \((.*?)\)", shown)[0]


def test_best_accuracy_is_labelled_as_chosen_on_test_data(make_runs):
    page, markdown, _ = make_runs(metrics=["student.best_test_accuracy"]).pages()
    for text in (Page(page).text, markdown):
        assert "Student's best test accuracy (at an epoch chosen on the test data)" in text
    assert "best" not in make_runs("other").pages()[1]


def test_a_validation_split_is_noted(make_runs):
    runs = make_runs()
    for settings in runs.comparison.variants.values():
        settings.data.validation = 0.1
    _, markdown, _ = runs.pages()
    assert "Measured on 10 % of the training images, held out" in markdown


def test_one_variant_is_compared_with_nothing(make_runs):
    page, markdown, found = make_runs(variants=("plain",)).pages()
    assert found["differences"] == {}
    for text in (Page(page).text, markdown):
        assert "There is one variant only" in text


def test_hostile_strings_stay_text(runs):
    hostile = "<script>alert('1')</script>"
    runs.summaries["plain", 0]["environment"][hostile] = hostile + "\x1b[31m\n|"
    runs.write()
    for key in runs.summaries:
        (runs.run(*key) / "student" / "model.json").write_text(json.dumps({"classes": [hostile] * len(CLASSES)}))
    page, markdown, _ = runs.pages()
    parsed = Page(page)
    assert not parsed.all("script")
    assert hostile in parsed.text
    assert "\x1b" not in page + markdown


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")
def test_huge_numbers_do_not_stop_the_pages(runs):
    for place, summary in enumerate(runs.summaries.values()):
        summary["teacher"]["distance_ratio"] = (-1) ** place * 9e99
        summary["student"]["test_accuracy"] = 9e99 * place / 12
    runs.write()
    for key in runs.summaries:
        line = json.dumps({"stage": "student", "epoch": 1e300, "test_accuracy": 1e99})
        (runs.run(*key) / "metrics.jsonl").write_text(line.replace("1e+300", "9e99") + "\n")
    *_, found = runs.pages()
    assert found["variants"]["plain"]["teacher.distance_ratio"]["sd"] > 9e99


def test_the_same_runs_give_the_same_bytes(make_runs, drawn_anew):
    few = {"epochs": 2, "metrics": [TEACHER]}
    assert make_runs("first", **few).pages() == make_runs("second", **few).pages()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", "[]"),
        ("summary.json", '{"teacher": {}, "student": 3}'),
        ("summary.json", '{"teacher": {"per_class_accuracy": 3}, "student": {}}'),
        ("summary.json", '{"teacher": {}, "student": {}, "environment": []}'),
        ("metrics.jsonl", "3\n"),
        ("student/model.json", '{"classes": 3}'),
    ],
)
def test_a_broken_file_is_named_and_the_old_pages_stay(make_runs, name, content):
    runs = make_runs(seeds=(0,), metrics=[ACCURACY])
    before = runs.pages()
    path = runs.run("intra", 0) / name
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        write_comparison(runs.path, runs.comparison)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (runs.path / "compare.html").read_text() == before[0]
    assert json.loads((runs.path / "compare.json").read_text()) == before[2]


def test_a_band_reaches_from_the_lowest_to_the_highest_seed_and_is_paired_with_the_baseline(make_runs):
    runs = make_runs(epochs=4, seeds=(0, 1, 2), metrics=[TEACHER])
    lines = {key: (runs.run(*key) / "metrics.jsonl").read_text().splitlines() for key in runs.summaries}
    curves = {
        key: [record["test_accuracy"] for record in map(json.loads, of) if record["stage"] == "teacher"]
        for key, of in lines.items()
    }
    results = write_comparison(runs.path, runs.comparison)
    drawn, apart = (chart.curves for chart in charts(results, results.metrics[0]))
    ours, base = (np.array([curves[name, seed] for seed in (0, 1, 2)]) for name in ("intra", "plain"))
    curve = next(curve for curve in drawn if curve.label == "intra")
    np.testing.assert_allclose(curve.values, ours.mean(axis=0))
    np.testing.assert_allclose(curve.band, [ours.min(axis=0), ours.max(axis=0)])
    later = next(curve for curve in apart if curve.label == "intra")
    interval = stats.ttest_rel(ours, base, axis=0).confidence_interval(0.95)
    assert later.epochs == [3, 4]
    np.testing.assert_allclose(later.values, (ours - base).mean(axis=0)[2:])
    np.testing.assert_allclose(later.band, [interval.low[2:], interval.high[2:]])


def test_coarse_classes_are_named_in_the_title(make_runs):
    runs = make_runs(variants=("plain", "intra"))
    for settings in runs.comparison.variants.values():
        settings.data.labels = "coarse"
    assert "# intra against plain on the coarse classes of digits" in runs.pages()[1]


def test_of_many_that_are_apart_the_largest_are_named(make_runs):
    names = tuple("abcdefgh")
    runs = make_runs(variants=names, metrics=[ACCURACY])
    base = np.array(values_of(runs, "a", ACCURACY))
    for place, name in enumerate(names):
        noise = 1e-4 * runs.rng.standard_normal(4)
        change(runs, name, ACCURACY, base + (0.01 * (8 - place) + noise if place else 0.0))
    runs.write()
    line = next(line for line in runs.pages()[1].splitlines() if line.startswith("- Student's test accuracy"))
    assert re.findall(r"(\w) \(\+", line) == ["b", "c", "d", "e", "f"]
    assert ") and 2 more." in line


def test_many_charts_are_folded_away(make_runs, monkeypatch):
    runs = make_runs(epochs=2, seeds=(0, 1), metrics=[TEACHER])
    assert "charts</summary>" not in runs.pages()[0]
    monkeypatch.setattr("icckd.report.comparison.curves._UNFOLDED", 1)
    assert "<details><summary>All 2 charts</summary>" in runs.pages()[0]
