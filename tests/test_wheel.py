"""What is installed: every module of the package, and the data that they read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

from setuptools import Distribution, find_packages
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_every_module_and_every_recording(monkeypatch):
    monkeypatch.chdir(ROOT)
    packages = find_packages(include=["icckd", "icckd.*"])
    distribution = Distribution({"packages": packages, "script_name": "setup.py"})
    distribution.parse_config_files(["pyproject.toml"])
    # Without it, setuptools would ask for the manifest, which it writes beside the sources.
    distribution.include_package_data = False
    command = build_py(distribution)
    command.ensure_finalized()
    held = {Path(name).relative_to(command.build_lib).as_posix() for name in command.get_outputs(False)}
    modules = [path for folder in ("icckd", "kernels") for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 100
    for module in modules:
        inside = module.relative_to(ROOT).as_posix()
        assert (inside if inside.startswith("icckd/") else f"icckd/{inside}") in held
    recordings = {f"icckd/bench/recorded/{path.name}" for path in (ROOT / "icckd/bench/recorded").glob("*.json")}
    assert "icckd/bench/recorded/h100.json" in recordings
    assert recordings <= held


@pytest.mark.slow
def test_the_benchmark_runs_from_a_wheel_without_the_tree(tmp_path):
    """Without the C++ extension, whose build tests/csrc looks at."""
    tree, site, empty = (tmp_path / name for name in ("tree", "site", "empty"))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.strip("\0").split("\0"):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name, follow_symlinks=False)
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    environment = {**os.environ, "ICCKD_NO_EXTENSION": "1", "ICCKD_NO_CUDA": "1"}
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(tree)]
    subprocess.run(build, env=environment, check=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.rmtree(tree)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, timeout=600)
    command = [sys.executable, "-m", "icckd", "bench", "kd_kl", "--quick", "--device", "cpu"]
    command += ["--json", "rows.json", "--plot", "bars.png"]
    environment = {key: value for key, value in os.environ.items() if key != "ICCKD_COMMIT"}
    subprocess.run(command, cwd=empty, env={**environment, "PYTHONPATH": str(site)}, check=True, timeout=600)
    rows = json.loads((empty / "rows.json").read_text())
    # The tree knows its commit, and so would a row that its code had made.
    assert {row["commit"] for row in rows} == {"unknown"}
    assert {"icckd reference", "F.kl_div"} <= {row["contender"] for row in rows if "mode" in row}
    assert (empty / "bars.png").exists()
