import os
import pickle

import pytest
import torch

from icckd.errors import UserError
from icckd.training import Checkpoint


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_round_trip(tmp_path):
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    assert not checkpoint.exists()
    state = {"weights": torch.randn(3), "epoch": 4, "history": [{"loss": 0.5, "note": None}]}
    checkpoint.save(state)
    assert checkpoint.exists()
    loaded = checkpoint.load()
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path, writer):
    marker = tmp_path / "ran"
    checkpoint = Checkpoint(tmp_path)
    if writer == "pickle":
        checkpoint.path.write_bytes(pickle.dumps({"task": Hostile(marker)}))
    else:
        torch.save({"task": Hostile(marker)}, checkpoint.path)
    with pytest.raises(UserError, match=r"state\.pt is not a checkpoint"):
        checkpoint.load()
    assert not marker.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_checkpoint_is_an_error_of_one_line(tmp_path, keep):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save({"weights": torch.randn(100)})
    whole = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(whole[:keep])
    with pytest.raises(UserError, match=r"state\.pt is not a checkpoint") as error:
        checkpoint.load()
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_something_else(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    torch.save(torch.zeros(2), checkpoint.path)
    with pytest.raises(UserError, match="it holds a Tensor"):
        checkpoint.load()
