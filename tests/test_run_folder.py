from dataclasses import replace

import pytest
import yaml

from icckd.errors import UserError
from icckd.run_folder import RunFolder, read_config
from icckd.settings import Settings, TeacherSettings


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


@pytest.mark.parametrize("text", ["- 1", "", "a: [", "a: !!python/object/apply:os.getcwd []", "\x00"])
def test_a_config_that_is_none(used, text):
    used.config.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        used.open(Settings(seed=5), resume=True)
