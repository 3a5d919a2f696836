"""Which runs there are, whose they are, and which may start."""

import pytest

from icckd.comparison.plan import Run, Schedule, Shard, runs_of, teacher_key
from icckd.errors import UserError
from icckd.settings import comparison_from, settings_from


def comparison(variants=("a", "b", "c"), seeds=(5, 3)):
    return comparison_from(
        {"variants": dict.fromkeys(variants), "baseline": variants[0], "seeds": list(seeds)}, "c.yaml"
    )


def test_all_variants_of_a_seed_come_before_the_next_seed():
    runs = [str(run) for run in runs_of(comparison())]
    assert runs == ["a/5", "b/5", "c/5", "a/3", "b/3", "c/3"]


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_shards_divide_the_runs(count):
    runs = runs_of(comparison(seeds=range(7)))
    shards = [Shard.parse(f"{index}/{count}").of(runs) for index in range(count)]
    assert sorted(str(run) for shard in shards for run in shard) == sorted(map(str, runs))
    assert all(run == runs[index + place * count] for index, of in enumerate(shards) for place, run in enumerate(of))


@pytest.mark.parametrize("text", ["", "1", "1/1", "2/1", "-1/2", "0/0", "a/b", "0/2/3", "٠/٢", "0/1 "])
def test_a_shard_that_is_none(text):
    with pytest.raises(UserError, match=r"^--shard is '.*'; it should be I/N"):
        Shard.parse(text)


def test_a_teacher_depends_on_everything_but_the_student():
    base = {"teacher.loss.weight": 0.5}
    key = teacher_key(settings_from(base, "x"))
    same = [{"student.epochs": 3}, {"student.loss.method": "dkd"}]
    others = [{"teacher.epochs": 3}, {"seed": 1}, {"data.validation": 0.5}, {"device": "cpu"}, {"teacher.arch": "vgg8"}]
    assert [teacher_key(settings_from(base | of, "x")) == key for of in [*same, *others]] == [True] * 2 + [False] * 5
    assert teacher_key(settings_from({"teacher.weights": "x"}, "x")) is None


def test_a_run_waits_for_the_teacher_that_another_trains():
    a, b, c, d = (Run(name, 0) for name in "abcd")
    schedule = Schedule([a, b, c, d], {a: ("t",), b: ("t",), c: ("u",), d: None})
    assert [schedule.next() for _ in range(4)] == [a, c, d, None]
    assert schedule.waiting == [b]
    schedule.teacher_finished(c)
    assert schedule.next() is None
    schedule.teacher_finished(a)
    assert schedule.next() == b
    assert (schedule.sharing(a), schedule.sharing(c), schedule.sharing(d)) == ([b], [], [])


def test_those_that_share_a_lost_teacher_wait_no_longer():
    a, b, c = (Run(name, 0) for name in "abc")
    schedule = Schedule([a, b, c], {a: ("t",), b: ("t",), c: ("t",)})
    assert schedule.next() == a
    assert schedule.drop(schedule.sharing(a)) == [b, c]
    assert schedule.waiting == []
