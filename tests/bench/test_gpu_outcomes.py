"""The outcomes of GPU tests: kept as they come, also where a test takes its process down, hangs or ruins the device."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bench.gpu import results, stages

# Processes that share the tests of each run.
WORKERS = 2


def begin(tmp_path, code, *options):
    """pytest, as `Visit.tests` calls it, over a file of these tests."""
    (tmp_path / "test_kd_kl.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(tmp_path),
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "bench.gpu.outcomes",
    ]
    command += ["--rootdir", str(tmp_path), "-c", os.devnull, "--outcomes", str(tmp_path / "tests.json")]
    command += ["--planned", str(tmp_path / "planned.json"), *options]
    return subprocess.Popen(
        command,
        cwd=stages.ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def outcomes_of(tmp_path):
    return {row["test"].split("::")[1]: row for row in results.read(tmp_path / "tests.json")}


CODE = """
import os, pytest
from bench.gpu import outcomes

outcomes._LONGEST = 5

def test_good(): pass
def test_bad():
    print("what was printed")
    assert 1 == 2, "first\\nsecond"
def test_skipped(): pytest.skip("no such device")
@pytest.fixture
def broken(): raise OSError("no room")
def test_broken(broken): pass
@pytest.fixture
def untidy():
    yield
    raise OSError("left behind")
def test_untidy(untidy): pass
"""
FATAL = """
def test_crash(): os.abort()
def test_hanging():
    import time
    time.sleep(60)
def test_ruins_the_device():
    outcomes._device_is_usable = lambda: False
    assert False, "an illegal memory access was encountered"
@pytest.mark.parametrize("k", range(6))
def test_behind(k): assert outcomes._device_is_usable()
"""


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", str(WORKERS))], ids=["serial", "parallel"])
def test_every_outcome_is_recorded_with_its_reason(tmp_path, options):
    if options:
        pytest.importorskip("xdist")
    output, _ = begin(tmp_path, CODE + (FATAL if options else ""), *options).communicate(timeout=300)
    found = outcomes_of(tmp_path)
    expected = {
        "test_good": ("passed", None),
        "test_bad": ("failed", "AssertionError: first … second assert 1 == 2"),
        "test_skipped": ("skipped", "Skipped: no such device"),
        "test_broken": ("failed", "OSError: no room"),
        "test_untidy": ("failed", "OSError: left behind"),
    }
    if options:
        expected |= {f"test_behind[{k}]": ("passed", None) for k in range(6)}
        expected["test_ruins_the_device"] = (
            "failed",
            "AssertionError: an illegal memory access was encountered … assert False",
        )
        for name in ("test_crash", "test_hanging"):
            row = found.pop(name)
            assert row["outcome"] == "failed"
            assert "crashed while running" in row["why"]
    assert {name: (row["outcome"], row["why"]) for name, row in found.items()} == expected, output
    assert "what was printed" in found["test_bad"]["log"]
    planned = json.loads((tmp_path / "planned.json").read_text())
    assert {name.split("::")[1] for name in planned} == {
        row["test"].split("::")[1] for row in results.read(tmp_path / "tests.json")
    }
    assert all(row["families"] == ["kd_kl"] for row in results.read(tmp_path / "tests.json"))


def test_logs_name_no_folder_of_the_machine():
    log = f"{stages.ROOT}/build/cuda, {sys.prefix}/lib/x.py:3, {sys.base_prefix}/lib/y.py"
    assert results.portable(log) == "build/cuda, lib/x.py:3, lib/y.py"


def test_what_was_finished_before_a_kill_is_kept(tmp_path):
    pytest.importorskip("xdist")
    code = "import time, pytest\n@pytest.mark.parametrize('k', range(100))\ndef test_slow(k): time.sleep(0.2)\n"
    process = begin(tmp_path, code, "-p", "xdist", "-n", str(WORKERS))
    while len(results.read(tmp_path / "tests.json")) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 5 <= len(results.read(tmp_path / "tests.json")) < 100
    assert len(json.loads((tmp_path / "planned.json").read_text())) == 100
