import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from icckd.cli import main
from icckd.data import load_data
from icckd.errors import UserError
from icckd.experiment import Experiment, RunFolder
from icckd.experiment.event_files import EventFiles
from icckd.experiment.progress import no_progress
from icckd.settings import DataSettings, Settings, TeacherSettings


class Writer:
    """Stands for TensorBoard's: each has a file of its own in its folder."""

    made = 0

    def __init__(self, folder):
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        Writer.made += 1
        self.file = (path / f"events.{Writer.made}").open("w")

    def add_scalar(self, *values):
        self.file.write(json.dumps(values) + "\n")

    def add_text(self, name, text):
        self.file.write(json.dumps([name, text, None]) + "\n")

    def flush(self):
        self.file.flush()

    def close(self):
        self.file.close()


@pytest.fixture
def fake(monkeypatch):
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def events(folder):
    """What all event files in `folder` hold, in the order of writing."""
    files = sorted(folder.iterdir(), key=lambda path: int(path.suffix[1:]))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def record(epoch):
    return {"epoch": epoch, "train_loss": 1 / epoch, "skipped_steps": 0, "unknown": None, "name": "a"}


@pytest.mark.usefixtures("fake")
def test_every_number_is_there_once_whatever_was_left(tmp_path):
    folder = tmp_path / "teacher"
    killed = EventFiles(folder, Settings(seed=5))
    killed.write([record(1)])
    killed.write([record(1), record(2)])
    resumed = EventFiles(folder, Settings(seed=5))
    resumed.write([record(1)])
    resumed.write([record(1), record(2)])
    resumed.write([record(1), record(2), record(3)])
    resumed.close()
    (name, text, _), *numbers = events(folder)
    assert name == "settings"
    assert "    seed: 5\n" in text
    assert numbers == [
        *(["train_loss", 1.0, 1], ["skipped_steps", 0, 1]),
        *(["train_loss", 1 / 2, 2], ["skipped_steps", 0, 2]),
        *(["train_loss", 1 / 3, 3], ["skipped_steps", 0, 3]),
    ]


class Stopping:
    """Ends a training once an epoch is done, and tells nothing."""

    def __init__(self, *of):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *of):
        pass

    def step(self, *of):
        pass

    def epoch(self, record):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("fake")
def test_a_resumed_run_has_each_epoch_once_and_the_same_bits(tmp_path):
    teacher = TeacherSettings(arch="convnet-small", epochs=2, warmup_epochs=0.0)
    data = DataSettings(train_fraction=0.2)
    settings, data = Settings(data=data, teacher=teacher), load_data(data)

    def run(name, *, progress=no_progress, resume=False, tensorboard=True):
        experiment = Experiment(settings, ("teacher",), data=data, progress=progress, tensorboard=tensorboard)
        experiment.run(RunFolder(tmp_path / name), resume=resume)

    run("plain", tensorboard=False)
    with pytest.raises(KeyboardInterrupt):
        run("shown", progress=Stopping)
    run("shown", resume=True)
    plain, shown = tmp_path / "plain", tmp_path / "shown"
    weights = "teacher/model.safetensors"
    assert (plain / weights).read_bytes() == (shown / weights).read_bytes()
    assert not (plain / "tensorboard").exists()
    records = [json.loads(line) for line in (shown / "metrics.jsonl").read_text().splitlines()]
    assert [of["epoch"] for of in records] == [1, 2]
    numbers = [
        [name, value, of["epoch"]] for of in records for name, value in of.items() if name not in ("stage", "epoch")
    ]
    assert events(shown / "tensorboard" / "teacher")[1:] == numbers
    RunFolder(shown).remove_results()
    assert not list(shown.iterdir())


def test_a_tensorboard_that_breaks_is_told_of_in_a_line(monkeypatch):
    class Broken(ModuleType):
        def __getattr__(self, name):
            raise TypeError("Descriptors cannot be created\ndirectly")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Broken("torch.utils.tensorboard"))
    with pytest.raises(UserError, match=r"cannot be imported \(Descriptors cannot be created directly\): pip install"):
        Experiment(Settings(), ("teacher",), tensorboard=True)


@pytest.mark.usefixtures("missing")
def test_without_tensorboard_nothing_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pip install 'icckd\[tensorboard\]'"):
        Experiment(Settings(), ("teacher",), tensorboard=True)
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--tensorboard", "--output", "run"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("icckd: error: --tensorboard is given, but TensorBoard cannot be imported (")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["evaluate", "report", "doctor", "compare"])
def test_what_trains_nothing_of_its_own_has_no_such_option(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([command, "--tensorboard"])
    assert stopped.value.code == 2


def test_tensorboard_reads_them(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for last in (2, 3):  # The first is killed: never closed.
        files = EventFiles(tmp_path / "student", Settings(seed=5))
        files.write([record(epoch) for epoch in range(1, last + 1)])
    files.close()
    read = reading.EventAccumulator(str(tmp_path / "student"))
    read.Reload()
    assert read.Tags()["scalars"] == ["train_loss", "skipped_steps"]
    assert [event.step for event in read.Scalars("train_loss")] == [1, 2, 3]
    assert [event.value for event in read.Scalars("train_loss")] == pytest.approx([1, 1 / 2, 1 / 3])
    (text,) = read.Tensors("settings/text_summary")
    assert b"    seed: 5\n" in text.tensor_proto.string_val[0]
