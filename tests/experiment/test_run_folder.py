import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from icckd.errors import UserError
from icckd.experiment.run_folder import RunFolder, read_config
from icckd.settings import Settings, StudentSettings, TeacherSettings


def files(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture
def used(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(Settings(seed=5))
    (folder.path / "summary.json").write_text("{}")
    (folder.stage("teacher") / "checkpoint").mkdir(parents=True)
    (folder.stage("teacher") / "model.json").write_text("{}")
    (folder.path / "my-notes.txt").write_text("keep me")
    return folder


def test_config_is_enough_to_run_again(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.open(Settings(seed=5))
    values = yaml.safe_load(folder.config.read_text())
    assert values["seed"] == 5
    assert values["teacher"]["loss"]["weight"] == Settings().teacher.loss.weight


def test_results_are_refused_and_kept(used):
    before = files(used.path)
    with pytest.raises(UserError, match="holds another run's results; add --resume"):
        used.open(Settings(seed=5))
    assert files(used.path) == before


def test_a_folder_with_other_files_is_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    RunFolder(tmp_path).open(Settings())
    assert (tmp_path / "notes.txt").read_text() == "x"


def test_overwrite_removes_results_only(used):
    used.open(Settings(seed=6), overwrite=True)
    assert set(files(used.path)) == {"config.yaml", "my-notes.txt"}
    assert read_config(used.config)["seed"] == 6


def test_overwrite_spares_the_teacher_it_was_given(used):
    before = files(used.path)
    settings = Settings(teacher=TeacherSettings(weights=str(used.stage("teacher"))))
    with pytest.raises(UserError, match="would delete the teacher"):
        used.open(settings, overwrite=True)
    assert files(used.path) == before


def test_resume_keeps_everything_but_half_written_files(used):
    leftover = used.stage("teacher") / "checkpoint" / ".state.pt.123.tmp"
    leftover.write_text("half")
    before = files(used.path)
    used.open(Settings(seed=5), resume=True)
    del before["teacher/checkpoint/.state.pt.123.tmp"]
    assert files(used.path) == before


def test_resume_with_other_settings_names_the_difference(used):
    settings = replace(Settings(seed=5), teacher=TeacherSettings(epochs=3))
    with pytest.raises(UserError, match=r"teacher\.epochs is 3, but the run in .* has 20"):
        used.open(settings, resume=True)


def test_resume_with_another_number_of_workers(used):
    data = replace(Settings().data, workers=3)
    used.open(Settings(data=data, seed=5), resume=True)
    assert read_config(used.config)["data"]["workers"] == 3


def test_resume_with_other_settings_of_a_stage_that_has_not_begun(used):
    settings = replace(Settings(seed=5), student=StudentSettings(epochs=3))
    used.open(settings, resume=True)
    assert read_config(used.config)["student"]["epochs"] == 3
    used.stage("student").mkdir()
    with pytest.raises(UserError, match=r"student\.epochs is 20, but the run in .* has 3"):
        used.open(Settings(seed=5), resume=True)


def test_resume_with_other_inputs_names_the_difference_and_changes_nothing(used):
    then, now = "3×1×8×8, sha256 0123456789abcdef", "4×1×8×8, sha256 fedcba9876543210"
    used.open(Settings(seed=5), {"data.train_images": then}, resume=True)  # the run of an older version takes them
    before = files(used.path)
    assert json.loads(before["inputs.json"]) == {"data.train_images": then}
    with pytest.raises(UserError, match=r"data\.train_images differs .*4×1×8×8, sha256 fedcba98… now, 3×1×8×8, sha"):
        used.open(Settings(seed=5), {"data.train_images": now}, resume=True)
    assert files(used.path) == before
    used.open(Settings(seed=5), {"data.train_images": now}, overwrite=True)
    assert json.loads(used.inputs.read_text()) == {"data.train_images": now}


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', "\x00", "[" * 100_000])
def test_inputs_that_are_none(used, text):
    used.inputs.write_text(text)
    with pytest.raises(UserError, match=r"inputs\.json"):
        used.open(Settings(seed=5), {"data.classes": "2"}, resume=True)


@pytest.mark.parametrize("text", ["", "[1]", '{"teacher": 1}'])
def test_a_summary_that_is_none(used, text):
    (used.path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json"):
        used.read_summary()


@pytest.mark.parametrize("name", ["out\udce9", "a\0b"])
def test_a_name_that_no_file_can_have(name):
    with pytest.raises(UserError, match="--output is '"):
        RunFolder(Path(name))


def test_resume_of_nothing_starts_anew(tmp_path):
    RunFolder(tmp_path / "new").open(Settings(), resume=True)
    assert (tmp_path / "new" / "config.yaml").exists()


def test_resume_needs_the_config(used):
    used.config.unlink()
    with pytest.raises(UserError, match=r"config\.yaml is missing"):
        used.open(Settings(seed=5), resume=True)


def test_resume_and_overwrite_exclude_each_other(used):
    with pytest.raises(UserError, match="give one of them"):
        used.open(Settings(), resume=True, overwrite=True)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "file").open(Settings())


def test_metrics_of_one_stage_replace_that_stage_only(used):
    used.write_metrics("teacher", [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": float("nan")}])
    used.write_metrics("student", [{"epoch": 1}])
    used.write_metrics("teacher", [{"epoch": 1, "loss": 2.0}])
    assert used.metrics.read_text().splitlines() == [
        '{"stage": "teacher", "epoch": 1, "loss": 2.0}',
        '{"stage": "student", "epoch": 1}',
    ]


def test_lines_of_metrics_that_are_none_are_dropped(used):
    used.metrics.write_bytes(b'\xff\n{"stage": "teacher", "epoch": 1}\n[]\n')
    used.write_metrics("student", [{"epoch": 1}])
    assert [json.loads(line)["stage"] for line in used.metrics.read_text().splitlines()] == ["teacher", "student"]


@pytest.mark.parametrize("text", ["- 1", "", "a: [", "a: !!python/object/apply:os.getcwd []", "\x00"])
def test_a_config_that_is_none(used, text):
    used.config.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        used.open(Settings(seed=5), resume=True)
