import pytest

from icckd.settings import TrainingSettings
from icckd.training.schedule import learning_rate


def rates(**settings):
    chosen = TrainingSettings(learning_rate=1.0, **settings)
    return [learning_rate(chosen, step, 10) for step in range(chosen.epochs * 10)]


def test_cosine_warms_up_peaks_and_falls_to_nearly_zero():
    values = rates(epochs=5, warmup_epochs=1.0)
    assert values[0] == pytest.approx(1 / 11)
    assert values[:11] == sorted(values[:11])
    assert values[10] == max(values) == 1.0
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[30] == pytest.approx(0.5)
    assert 0 < values[-1] < 0.01


def test_steps_fall_at_the_milestones():
    values = rates(epochs=4, warmup_epochs=0, schedule="step", milestones=[0.5, 0.75], decay=0.1)
    assert values == pytest.approx([1.0] * 20 + [0.1] * 10 + [0.01] * 10)


def test_no_warmup_starts_at_the_peak():
    assert rates(epochs=2, warmup_epochs=0)[0] == 1.0


def test_warmup_through_the_whole_training_only_rises():
    values = rates(epochs=2, warmup_epochs=2)
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("scaling", "batch", "factor"),
    [
        *(("none", 1024, 1), ("linear", 256, 1), ("linear", 1024, 4), ("linear", 64, 0.25)),
        *(("square-root", 256, 1), ("square-root", 1024, 2), ("square-root", 64, 0.5)),
    ],
)
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_the_whole_course_is_scaled_for_the_batch(schedule, scaling, batch, factor):
    course = {"schedule": schedule, "epochs": 4, "warmup_epochs": 1.5}
    expected = [factor * rate for rate in rates(**course)]
    assert rates(**course, rate_scaling=scaling, batch_size=batch) == pytest.approx(expected, rel=1e-12)
