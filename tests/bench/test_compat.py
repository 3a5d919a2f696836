"""What `bench.compat` finds: sources that do not compile, that call what is not there, and kernels with a problem."""

import json
import shutil
import sys

import pytest

from bench import compat

SOURCES = {
    "good": "int f() { return 1; }",
    "wrong": "int f() { return nothing; }",
    "newer": 'extern "C" int torch_newer(), aoti_torch_older(); int f() { return torch_newer() + aoti_torch_older(); }',
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A version of LibTorch and one of Triton, without anything downloaded, and three sources."""
    if compat.setup.find_compiler() is None or shutil.which("nm") is None:
        pytest.skip("needs a C++ compiler and nm")
    for name, code in SOURCES.items():
        (tmp_path / f"{name}.cpp").write_text(code)
    headers = tmp_path / "torch-1.0" / "include" / "torch" / "csrc" / "stable"
    headers.mkdir(parents=True)
    (headers / "shim.h").write_text("int aoti_torch_older();")
    (tmp_path / "torch-1.0" / "functions.json").write_text('["aoti_torch_older"]')
    (tmp_path / "triton-1.0").mkdir()
    (tmp_path / "triton-1.0.json").write_text(
        json.dumps([{"kernel": "k", "problem": None}, *([{"kernel": "k", "problem": "spills registers"}] * 2)])
    )
    monkeypatch.setattr(compat, "FOLDER", tmp_path)
    monkeypatch.setattr(compat, "NAMES", tmp_path / "names.txt")
    monkeypatch.setattr(compat, "TORCH", ("1.0",))
    monkeypatch.setattr(compat, "TRITON", ("1.0",))
    monkeypatch.setattr(compat, "_triton_rule", lambda name, folder: [f"rule {name}", "  command = touch $out"])
    monkeypatch.setattr(compat.setup, "cuda_compile_rule", lambda *_: [])
    monkeypatch.setattr(compat.setup, "cuda_compilations", list)
    monkeypatch.setattr(compat.setup, "compilations", lambda: [(f"{n}.o", tmp_path / f"{n}.cpp", []) for n in SOURCES])
    monkeypatch.setattr(compat.setup, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(sys, "argv", ["compat"])
    return tmp_path


def outcome(lines, name):
    """What the table says of the row whose name ends so."""
    return next(
        line.split(maxsplit=1)[1].strip() for line in lines if line.split()[:1] and line.split()[0].endswith(name)
    )


def test_each_problem_is_found(project, capsys):
    assert compat.main() == 1
    lines = capsys.readouterr().out.splitlines()
    lines = lines[next(k for k, line in enumerate(lines) if line.strip() == "torch 1.0") :]
    assert outcome(lines, "/good") == "ok"
    assert outcome(lines, "/wrong") == "does not compile"
    assert outcome(lines, "/newer") == "lacks torch_newer"
    assert outcome(lines, "k") == "spills registers"
    assert lines[-1] == "3 problems"
    assert "aoti_torch_older" in (project / "names.txt").read_text().splitlines()


def test_what_is_mended_is_compiled_again_and_nothing_else(project, capsys):
    compat.main()
    for name in ("wrong", "newer"):
        (project / f"{name}.cpp").write_text(SOURCES["good"])
    (project / "triton-1.0.json").write_text('[{"kernel": "k", "problem": null}]')
    capsys.readouterr()
    assert compat.main() == 0
    output = capsys.readouterr().out
    assert "good.o" not in output
    assert "wrong.o" in output
    assert output.splitlines()[-1] == "0 problems"


def test_a_download_that_fails_leaves_nothing_behind(tmp_path):
    def interrupted():
        with compat._filled_at_once(tmp_path / "torch-1.0") as new:
            (new / "half.whl").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
