"""The choice of classes by hand-made tables, and a small run with trials, stopped and resumed."""

import json
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from icckd.data import Batches, load_data
from icckd.errors import Interrupted, TrainingDiverged, UserError
from icckd.experiment import Experiment, RunFolder, experiment
from icckd.experiment.class_augmentation import choose, crop_areas, trials
from icckd.experiment.progress import no_progress
from icckd.models import load_model
from icckd.settings import EvaluationSettings, check, settings_from
from icckd.training import StopSignal

GIVEN = {
    "data.train_fraction": 0.1,
    "data.augmentation.resized_crop": [0.2, 1.0],
    "data.class_augmentation.classes": 3,
    "data.class_augmentation.areas": [0.1, 0.9],
    "data.class_augmentation.holdout": 0.4,
    **{f"{stage}.{name}": value for stage in ("teacher", "student") for name, value in (
        ("arch", "convnet-small"), ("epochs", 1), ("batch_size", 16), ("warmup_epochs", 0.0))},
    "device": "cpu",
    "checkpoint_every": 2,
}  # fmt: skip
SETTINGS = settings_from(GIVEN, "test")
AREAS = [0.1, 0.3, 0.5, 1.0]


@pytest.fixture(autouse=True)
def _without_report(monkeypatch):
    monkeypatch.setattr(experiment, "write_report", lambda folder: None)


@pytest.mark.parametrize(
    ("false_positives", "most", "chosen"),
    [
        # Gains of 4, 0, 7 and 1; the first class has its fewest at two areas.
        ([[9, 5, 5, 8], [1, 2, 3, 4], [9, 9, 9, 2], [3, 3, 2, 3]], 2, {0: 0.3, 2: 1.0}),
        ([[9, 5, 5, 8], [1, 2, 3, 4], [9, 9, 9, 2], [3, 3, 2, 3]], 1, {2: 1.0}),
        # Fewer than wanted gain at all.
        ([[9, 5, 5, 8], [1, 2, 3, 4], [9, 9, 9, 2], [3, 3, 2, 3]], 9, {0: 0.3, 2: 1.0, 3: 0.5}),
        ([[0, 0, 0, 0], [2, 2, 2, 2], [1, 5, 5, 1]], 3, {}),
        # As much of several: those with the lower labels.
        ([[2, 1, 1, 2], [5, 4, 4, 4], [8, 8, 7, 7]], 2, {0: 0.3, 1: 0.3}),
    ],
)
def test_the_choice(false_positives, most, chosen):
    assert choose(AREAS, false_positives, most) == chosen


def test_the_choice_is_that_of_a_loop_over_random_tables(generator):
    for most in (1, 3, 20):
        table = torch.randint(0, 6, (12, 4), generator=generator).tolist()
        left, expected = dict(enumerate(table)), {}
        while left and len(expected) < most:
            best = None
            for label in sorted(left):
                gain = left[label][0] - min(left[label])
                if gain > 0 and (best is None or gain > best[0]):
                    best = (gain, label)
            if best is None:
                break
            counts = left.pop(best[1])
            expected[best[1]] = next(area for area, count in zip(AREAS, counts, strict=True) if count == min(counts))
        assert choose(AREAS, table, most) == expected


def test_trials_are_the_runs_teacher_on_a_part_of_its_images_with_other_crops():
    data = load_data(SETTINGS.data)
    made = list(trials(replace(SETTINGS, evaluation=EvaluationSettings("pgd")), data))
    assert [trial.area for trial in made] == [0.2, 0.9]  # What is no milder than the strongest counts for nothing.
    for trial in made:
        check(trial.settings, ("teacher",))
        assert trial.settings.teacher == SETTINGS.teacher
        assert trial.settings.evaluation.attack is None
        assert trial.settings.data.augmentation.resized_crop == [trial.area, 1.0]
        assert trial.data.augmentation == data.augmentation._replace(resized_crop=(trial.area, 1.0))
        assert (trial.data.mean, trial.data.classes) == (data.mean, data.classes)
        both = torch.cat([trial.data.train_images, trial.data.test_images])
        assert sorted(both.flatten(1).tolist()) == sorted(data.train_images.flatten(1).tolist())
        held, of_all = trial.data.test_labels.bincount(), data.train_labels.bincount()
        assert held.tolist() == (0.4 * of_all).round().int().tolist()


def run(path, settings=SETTINGS, stop=None, **how):
    signals = StopSignal if stop is None else lambda: nullcontext(stop)
    return Experiment(settings, stop=signals, progress=no_progress).run(RunFolder(path), **how)


class Noting(Batches):
    """Batches that note what training ones were made with."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, *images, **how):
        super().__init__(*images, **how)
        if how["shuffle"]:
            self.made.append(how)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "write_report", lambda folder: None)
        patch.setattr(experiment, "Batches", Noting)
        run(path)
    return path


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in value.items() if name not in ("seconds", "date")}
    return value


def summary(path):
    return json.loads((path / "summary.json").read_text())


def test_the_summary_tells_what_the_trials_networks_say_of_the_held_out_images(whole):
    told, data = summary(whole)["class_augmentation"], load_data(SETTINGS.data)
    assert told["areas"] == [0.2, 0.9]
    assert told["holdout"] == 0.4
    for place, trial in enumerate(trials(SETTINGS, data)):
        model, _ = load_model(whole / "class_augmentation" / str(trial.area) / "teacher")
        model.eval()
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        called = model((trial.data.test_images / 255 - mean) / std)[1].argmax(1).tolist()
        pairs = list(zip(called, trial.data.test_labels.tolist(), strict=True))
        for label in range(10):
            assert told["false_positives"][label][place] == sum(c == label != true for c, true in pairs)
            of_class = [c == label for c, true in pairs if true == label]
            assert told["accuracy"][label][place] == pytest.approx(sum(of_class) / len(of_class))
    assert 0 < len(told["chosen"]) <= 3
    assert told["chosen"] == {str(k): v for k, v in choose(told["areas"], told["false_positives"], 3).items()}


def test_every_network_is_trained_with_its_bounds(whole):
    *tried, teacher, student = Noting.made
    assert [(how["augmentation"].resized_crop[0], how["crop_areas"]) for how in tried] == [(0.2, None), (0.9, None)]
    chosen = summary(whole)["class_augmentation"]["chosen"]
    for how in (teacher, student):
        assert how["crop_areas"].tolist() == [[chosen.get(str(label), 0.2), 1.0] for label in range(10)]


class StopAfter(StopSignal):
    """As if a signal came after so many looks."""

    def __init__(self, looks):
        self.looks = looks

    @property
    def received(self):
        self.looks -= 1
        return signal.SIGTERM if self.looks < 0 else None


@pytest.mark.parametrize("looks", [5, 15])
def test_stopped_in_any_trial_and_resumed_ends_in_the_same_bits(whole, tmp_path, looks):
    path = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(path, stop=StopAfter(looks))
    finished = path / "class_augmentation" / "0.2" / "summary.json"
    written = finished.stat().st_mtime_ns if finished.exists() else None
    assert (written is None) == (looks == 5)
    assert not (path / "teacher").exists()
    with pytest.raises(UserError, match="holds another run's results"):
        run(path)
    with pytest.raises(UserError, match=r"--resume: teacher\.learning_rate is 0\.2, but the run in .*/run has 0\.1"):
        run(path, settings_from({**GIVEN, "teacher.learning_rate": 0.2}, "test"), resume=True)
    run(path, resume=True)
    assert written in (None, finished.stat().st_mtime_ns)
    assert without_times(summary(path)) == without_times(summary(whole))
    for name in ("teacher", "student", "class_augmentation/0.9/teacher"):
        one, other = (load_file(of / name / "model.safetensors") for of in (path, whole))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_overwriting_a_run_removes_its_trials(whole, tmp_path):
    folder = RunFolder(shutil.copytree(whole, tmp_path / "run"))
    folder.open(SETTINGS, overwrite=True)
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"]


def test_a_teacher_that_is_taken_comes_with_its_classes(whole, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.take_teacher(RunFolder(whole), SETTINGS)
    run(folder.path, resume=True)
    assert without_times(summary(folder.path)) == without_times(summary(whole))
    assert not (folder.path / "class_augmentation").exists()


def test_what_is_wrong_is_found_before_anything_is_trained():
    for given, words in (
        ({"teacher.batch_size": 100}, "data.class_augmentation: teacher.batch_size is 100, more than the "),
        (
            {"data.train_fraction": 0.001, "teacher.batch_size": 2, "student.batch_size": 2},
            "data.class_augmentation.holdout needs at least 2 images of each class",
        ),
    ):
        with pytest.raises(UserError, match=words):
            Experiment(settings_from({**GIVEN, **given}, "test"))


def test_a_trial_that_diverges_is_named(tmp_path):
    settings = settings_from({**GIVEN, "teacher.learning_rate": 1e30}, "test")
    with pytest.raises(TrainingDiverged, match=r"^in a trial with crops from 0\.2 of the area the teacher's training"):
        run(tmp_path / "run", settings)


@pytest.mark.parametrize("found", [{}, {"chosen": [1]}, {"chosen": {"x": 0.5}}, {"chosen": {"99": 0.5}}])
def test_a_summary_of_something_else_is_refused(found):
    with pytest.raises(UserError, match="class_augmentation should have chosen areas by label"):
        crop_areas(found, load_data(SETTINGS.data))
