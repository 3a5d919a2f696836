import json
import math
import os

import pytest
import torch
from safetensors.torch import save_file

from icckd.files import is_utf8, json_line, write_json, write_text, write_whole


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fail_midway(temporary):
        temporary.write_text("half")
        raise RuntimeError("power loss")

    with pytest.raises(OSError, match=r"file cannot be written; is the disk full\? \(power loss\)"):
        write_whole(target, fail_midway)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_file_is_named_and_not_the_temporary_one(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"/folder'$"):
        write_text(tmp_path / "folder", "text")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("save", [torch.save, save_file])
def test_that_a_disk_is_full_is_said_in_one_way(tmp_path, save):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"tensors cannot be written; is the disk full\?"):
            write_whole(tmp_path / "tensors", lambda path: save({"x": torch.zeros(10_000)}, path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not os.listdir(tmp_path)


def test_write_text_creates_folders_and_replaces(tmp_path):
    target = tmp_path / "a" / "b.txt"
    write_text(target, "λ")
    write_text(target, "μ")
    assert target.read_text(encoding="utf-8") == "μ"


def test_json_has_null_for_numbers_that_json_lacks(tmp_path):
    value = {"a": math.nan, "b": [1.5, math.inf], "c": {"d": (-math.inf, 2)}}
    write_json(tmp_path / "x.json", value)
    expected = {"a": None, "b": [1.5, None], "c": {"d": [None, 2]}}
    assert json.loads((tmp_path / "x.json").read_text()) == expected
    assert json.loads(json_line(value)) == expected
    assert "\n" not in json_line(value)


@pytest.mark.parametrize(("name", "utf8"), [("café 写", True), ("caf\udce9", False), ("", True)])
def test_names_that_utf8_cannot_hold_are_told(name, utf8):
    assert is_utf8(name) is utf8
