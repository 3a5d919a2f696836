"""Networks that are not measured after every epoch."""

import json

import pytest

from icckd.cli import main

SMALL = ["--data.train_fraction", "0.1", "--teacher.arch", "convnet-small", "--teacher.epochs", "5"]


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return stopped.value.code


def test_every_so_many_epochs_and_the_last_are_measured_and_the_network_is_the_same(tmp_path, capsys):
    summaries, histories = {}, {}
    for every in (1, 2):
        folder = tmp_path / str(every)
        assert run("teacher", *SMALL, "--evaluation.every", every, "--output", folder) == 0
        summaries[every] = json.loads((folder / "summary.json").read_text())["teacher"]
        histories[every] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = [record["epoch"] for record in histories[2] if "test_accuracy" in record]
    assert measured == [2, 4, 5]
    assert [record["epoch"] for record in histories[2]] == [1, 2, 3, 4, 5]
    for often, seldom in zip(histories[1], histories[2], strict=True):
        assert {**often, "seconds": 0} == {**often, **seldom, "seconds": 0}
    best = max((record for record in histories[2] if "test_accuracy" in record), key=lambda r: r["test_accuracy"])
    assert summaries[2]["best_test_accuracy"] == best["test_accuracy"]
    same = set(summaries[1]) - {"seconds", "best_test_accuracy", "best_epoch"}
    assert {name: summaries[1][name] for name in same} == {name: summaries[2][name] for name in same}
    assert "Accuracy" in (tmp_path / "2" / "report.html").read_text()
    capsys.readouterr()
    assert run("teacher", *SMALL, "--evaluation.every", 0, "--output", tmp_path / "none") == 2
    assert "evaluation.every is 0; it should be 1 or more" in capsys.readouterr().err
