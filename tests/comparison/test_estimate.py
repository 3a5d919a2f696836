"""When it will end."""

import pytest

from icckd.comparison.estimate import Estimate
from icckd.comparison.plan import runs_of
from icckd.comparison.progress import duration
from icckd.comparison.worker import Told
from icckd.settings import comparison_from

COMPARISON = comparison_from(
    {
        "base": {"teacher.epochs": 10, "student.epochs": 5},
        "variants": {"kd": {}, "dkd": {"student.loss.method": "dkd"}, "plain": {"teacher.loss.weight": 0}},
        "baseline": "kd",
        "seeds": [0, 1],
    },
    "c.yaml",
)
KD, DKD, PLAIN, *LATER = runs_of(COMPARISON)


def test_nothing_is_known_before_an_epoch_is_over():
    estimate = Estimate(COMPARISON)
    estimate.told(KD, Told("teacher", 0.5, 10))
    assert estimate.left([DKD], {KD: Told("teacher", 0.5, 10)}, 1) is None
    assert estimate.left([], {}, 1) == 0


def test_students_are_taken_to_be_as_fast_as_teachers_until_one_has_been_seen():
    estimate = Estimate(COMPARISON)
    estimate.told(KD, Told("teacher", 1, 10, 3.0))
    running = {KD: Told("teacher", 1, 10, 3.0)}
    assert estimate.left([], running, 1) == pytest.approx(9 * 3 + 5 * 3)
    estimate.told(PLAIN, Told("student", 1, 5, 0.5))
    assert estimate.left([], running, 1) == pytest.approx(9 * 3 + 5 * 0.5)


def test_a_teacher_in_common_counts_once_and_jobs_share_the_rest():
    estimate = Estimate(COMPARISON)
    estimate.told(KD, Told("teacher", 10, 10, 3.0))
    estimate.told(KD, Told("student", 1, 5, 2.0))
    estimate.told(PLAIN, Told("teacher", 4, 10, 1.0))
    running = {KD: Told("student", 1, 5, 2.0), PLAIN: Told("teacher", 4, 10, 1.0)}
    # kd: 4 epochs of a student; plain: 6 of a teacher, 5 of a student; dkd: a student.
    assert estimate.left([DKD], running, 1) == pytest.approx(4 * 2 + 6 * 1 + 5 * 2 + 5 * 2)
    assert estimate.left([DKD], running, 2) == pytest.approx((8 + 16 + 10) / 2)
    assert estimate.left([DKD], running, 9) == pytest.approx(16)
    # Of the next seed, kd and dkd share a teacher again.
    assert estimate.left(LATER, {}, 1) == pytest.approx(10 * 3 + 10 * 1 + 3 * 5 * 2)


def test_trials_of_class_augmentation_come_before_the_teacher():
    tried = {"classes": 2, "areas": [0.5, 1.0], "epochs": 2}
    crops = {"data.augmentation.resized_crop": [0.1, 1.0], "data.class_augmentation": tried}
    given = {"base": {"teacher.epochs": 10, "student.epochs": 5}, "variants": {"plain": {}, "crops": crops}}
    comparison = comparison_from({**given, "baseline": "plain", "seeds": [0]}, "c.yaml")
    _, run = runs_of(comparison)
    estimate = Estimate(comparison)
    estimate.told(run, Told("crop 0.1", 1, 2, 3.0))
    # Three trials of 2 epochs, of which one is over, a teacher and a student.
    assert estimate.left([], {run: Told("crop 0.1", 1, 2)}, 1) == pytest.approx((5 + 10 + 5) * 3)
    estimate.told(run, Told("crop 1.0", 1, 2, 4.0))
    estimate.told(run, Told("teacher", 1, 10, 7.0))
    assert estimate.left([], {run: Told("crop 1.0", 1, 2)}, 1) == pytest.approx(1 * 4 + 10 * 7 + 5 * 7)
    assert estimate.left([], {run: Told("teacher", 4, 10)}, 1) == pytest.approx(6 * 7 + 5 * 7)
    assert estimate.left([run], {}, 1) == pytest.approx(2 * 3 + 2 * 7 + 2 * 4 + 10 * 7 + 5 * 7)


def test_what_a_run_takes_beside_its_training_and_what_summaries_tell():
    estimate = Estimate(COMPARISON)
    estimate.found(KD, {"teacher": {"seconds": 20.0}, "student": {"seconds": 5.0}})
    assert estimate.left([DKD], {}, 1) == pytest.approx(5)
    estimate.finished(DKD, 12.0, trained=5.0)
    assert estimate.left(LATER[:1], {}, 1) == pytest.approx(20 + 5 + 7)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (12000, "3 h 20 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
