"""The files of launch options survive being written, and the search takes what is right and fast."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from bench import tune
from bench.launch_tables import LaunchTable
from icckd.kernels import tables

FILES = {name: tune.FOLDER / f"{name}.py" for name in (*tables.ARCHITECTURES, "interpreter", "shared")}
CPU = torch.device("cpu")
MEASURED = "0.1234 ms for intra_class bfloat16 n=32768 d=512 c=16 on NVIDIA H200, 2026-01-01"


def table_of(path):
    names = {}
    exec(path.read_text(), names)
    return names["TABLE"]


def ruff(*arguments):
    pytest.importorskip("ruff")
    return subprocess.run(
        [sys.executable, "-m", "ruff", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("architecture", FILES)
def test_a_table_comes_back_as_it_was_written(architecture, tmp_path):
    before = LaunchTable.read(FILES[architecture])
    before.write(tmp_path / "table.py")
    after = LaunchTable.read(tmp_path / "table.py")
    assert table_of(tmp_path / "table.py") == table_of(FILES[architecture])
    assert (after.docstring, after.comments) == (before.docstring, before.comments)
    assert after.source() == (tmp_path / "table.py").read_text()


@pytest.mark.parametrize("architecture", FILES)
def test_a_written_table_is_as_ruff_formats_it(architecture, tmp_path):
    written = LaunchTable.read(FILES[architecture])
    for kernel, widths in written.table.items():
        for width, classes in widths.items():
            bound = next(iter(classes))
            long = {f"OPTION_{k}": 128 for k in range(8)} if kernel == "gradient" else classes[bound]
            written.measured((kernel, width, bound), long, MEASURED, classes)
    written.write(tmp_path / "table.py")
    for command in (("format", "--check", "--line-length", 120), ("check", "--select", "E,W", "--line-length", 120)):
        result = ruff(*command, tmp_path / "table.py")
        assert result.returncode == 0, result.stdout + result.stderr


def test_an_entry_that_was_measured_says_so_and_the_others_keep_their_comments(tmp_path):
    (tmp_path / "table.py").write_text('''"""Options.

No entry has been measured yet: all are chosen by what fits.
"""

TABLE = {
    # Rows.
    "prepare": {
        "half": {
            64: {"BLOCK": 8, "num_warps": 4},  # the least
            # One, and
            # another reason.
            128: {"BLOCK": 16, "num_warps": 4},
        },
    },
}
''')
    table = LaunchTable.read(tmp_path / "table.py")
    table.measured(("prepare", "half", 128), {"BLOCK": 32, "num_warps": 8}, MEASURED, {})
    table.write(tmp_path / "table.py")
    assert (
        (tmp_path / "table.py").read_text()
        == f'''"""Options.

Entries without a comment have not been measured: they are chosen by what fits.
"""

TABLE = {{
    # Rows.
    "prepare": {{
        "half": {{
            # the least
            64: {{"BLOCK": 8, "num_warps": 4}},
            # {MEASURED}
            128: {{"BLOCK": 32, "num_warps": 8}},
        }},
    }},
}}
'''
    )


@pytest.mark.parametrize("architecture", tables.ARCHITECTURES)
def test_a_file_repeats_of_the_shared_one_only_what_was_measured(architecture):
    own, shared = LaunchTable.read(FILES[architecture]), table_of(FILES["shared"])
    repeated = [
        (kernel, width)
        for kernel, widths in own.table.items()
        for width, classes in widths.items()
        if classes == shared.get(kernel, {}).get(width) and not any(p[:2] == (kernel, width) for p in own.comments)
    ]
    assert not repeated


@pytest.mark.parametrize("architecture", tables.ARCHITECTURES)
def test_what_a_file_says_stands_and_the_rest_is_shared(architecture):
    own, shared = table_of(FILES[architecture]), table_of(FILES["shared"])
    whole = {
        (kernel, width): classes for kernel, x in tables.table(architecture).items() for width, classes in x.items()
    }
    for (kernel, width), classes in whole.items():
        # Size classes of the two are not mixed.
        source = own if width in own.get(kernel, {}) else shared
        assert classes == source[kernel][width]
    said = {(kernel, width) for table in (own, shared) for kernel, widths in table.items() for width in widths}
    assert whole.keys() == said


def test_the_interpreter_takes_nothing_of_what_gpus_share():
    own = table_of(FILES["interpreter"])
    assert own == tables.table("interpreter")
    assert own.keys() == tune.SPACE.keys()


@pytest.mark.parametrize("architecture", tables.ARCHITECTURES)
def test_every_entry_has_a_space_to_search_and_a_case_of_its_size(architecture):
    table = tables.table(architecture)
    assert table.keys() == tune.SPACE.keys()
    for entry in tune.entries(architecture, table):
        present = table[entry.kernel][entry.width][entry.bound]
        tried = tune.candidates(entry, present)
        assert tried[0] == present
        assert len(tried) > 3
        assert all(options.keys() == present.keys() for options in tried)
        assert all(options["num_warps"] <= 32 for options in tried)
        assert entry.lower < entry.typical <= entry.bound
        assert tune.case_for(entry).dtype == entry.dtype


def test_the_case_of_an_entry_uses_it():
    (entry,) = (e for e in tune.entries("sm_90", ["gradient"]) if (e.width, e.bound) == ("half", 4096))
    assert tune.case_for(entry).d > entry.lower


def an_entry(kernel="one_tile"):
    return next(tune.entries("interpreter", [kernel]))


def test_a_candidate_is_in_the_table_only_while_it_is_tried():
    entry = an_entry()
    options = {"BLOCK": 16, "mark": 1}
    before, shared = tables.options(entry.kernel, "interpreter", 2, entry.bound), table_of(FILES["shared"])
    with tune.installed(entry, options):
        assert tables.options(entry.kernel, "interpreter", 2, entry.bound) is options
    assert tables.options(entry.kernel, "interpreter", 2, entry.bound) is before
    (common,) = (e for e in tune.entries("sm_90", ["layout"]) if e.width == "float")
    with tune.installed(common, options):
        assert tables.table("sm_90")["layout"]["float"][common.bound] is options
        assert tables.table("sm_80")["layout"] == shared["layout"]


def test_what_does_not_fit_is_found_before_it_is_tried():
    (entry,) = (e for e in tune.entries("sm_80", ["prepare"]) if e.width == "half")
    with tune.aot.process_pool(1) as pool:
        good = pool.submit(tune.problem, entry, {"BLOCK": 4, "BLOCK_K": 256, "num_warps": 4}).result()
        bad = pool.submit(tune.problem, entry, {"BLOCK": 16, "BLOCK_K": 1024, "num_warps": 1}).result()
    assert good is None
    assert bad == "spills registers"


@pytest.mark.skipif(not tables.interpreted(), reason="kernels run on the GPU")
def test_a_candidate_that_is_wrong_or_cannot_run_is_refused():
    entry = an_entry("prepare")
    looking = tune.Search(entry, tune.case_for(entry).tiny(), CPU)
    present = table_of(FILES["interpreter"])["prepare"]["half"][entry.bound]
    assert looking.is_right(present)
    assert not looking.is_right({"num_warps": 1})
    looking.exact = {name: 2 * value for name, value in looking.exact.items()}
    assert not looking.is_right(present)


def winner(monkeypatch, milliseconds):
    looking = object.__new__(tune.Search)
    looking.timer = None
    monkeypatch.setattr(tune.Search, "call", lambda self, options: options["k"])
    monkeypatch.setattr(
        tune.measure,
        "interleaved",
        lambda calls, *_: {name: [milliseconds[k] / 1e3] for name, k in calls.items()},
    )
    return looking.winner([{"k": k} for k in range(len(milliseconds))])


def test_the_fastest_wins(monkeypatch):
    options, row = winner(monkeypatch, [5.0, 4.0, 9.0, 3.0, 8.0, 7.0, 6.0, 10.0])
    assert options == {"k": 3}
    assert (row["median_ms"], row["present_ms"]) == (pytest.approx(3.0), pytest.approx(5.0))


def test_the_present_entry_stays_unless_another_is_clearly_faster(monkeypatch):
    assert winner(monkeypatch, [5.0, 4.95])[0] == {"k": 0}


@pytest.mark.skipif(not tables.interpreted(), reason="kernels run on the GPU")
@pytest.mark.parametrize(
    ("kernel", "case"),
    [("layout", "layout float32"), pytest.param("one_tile", "intra_class bfloat16", marks=pytest.mark.slow)],
)
def test_the_dry_run_searches_and_writes_no_table(tmp_path, monkeypatch, capsys, kernel, case):
    before = FILES["interpreter"].read_text()
    monkeypatch.setattr(sys, "argv", ["tune", kernel, "--dry-run", "--json", str(tmp_path / "rows.json")])
    assert tune.main() == 0
    rows = tune.results.read(tmp_path / "rows.json")
    assert {row["kernel"] for row in rows} == {kernel}
    assert all(row["median_ms"] > 0 and row["usable"] >= 1 and row["commit"] for row in rows)
    assert FILES["interpreter"].read_text() == before
    assert f"candidates on {case}" in capsys.readouterr().out


def test_an_unknown_kernel_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tune", "cooking"])
    with pytest.raises(SystemExit):
        tune.main()
    assert "no kernel is called cooking; there are prepare" in capsys.readouterr().err


def test_a_measured_entry_is_written_into_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "FOLDER", tmp_path)
    (tmp_path / "sm_90.py").write_text(FILES["sm_90"].read_text())
    monkeypatch.setattr(tune.tables, "architecture", lambda device: "sm_90")
    row = {"median_ms": 0.5, "case": "intra_class bfloat16 n=1", "processor": "NVIDIA Made-Up"}
    monkeypatch.setattr(tune, "tune", lambda entry, device, dry_run: ({"BLOCK": 77, "num_warps": 4}, row))
    monkeypatch.setattr(sys, "argv", ["tune", "prepare"])
    assert tune.main() == 0
    table = LaunchTable.read(tmp_path / "sm_90.py")
    assert table.table["prepare"]["half"][4096] == {"BLOCK": 77, "num_warps": 4}
    assert "0.5000 ms for intra_class bfloat16 n=1 on NVIDIA Made-Up, 20" in table.comments["prepare", "half", 4096][0]
    # Both widths of this kernel were shared: the file says them itself now, and of the others what it said before.
    assert table.table.pop("prepare").keys() == {"half", "float"}
    assert table.table == table_of(FILES["sm_90"])


def test_size_classes_that_were_shared_become_the_files_own_together(tmp_path):
    (tmp_path / "table.py").write_text('"""Options."""\n\nTABLE = {}\n')
    table = LaunchTable.read(tmp_path / "table.py")
    shared = {64: {"BLOCK": 8}, 128: {"BLOCK": 16}}
    table.measured(("prepare", "half", 128), {"BLOCK": 32}, MEASURED, shared)
    assert table.table == {"prepare": {"half": {64: {"BLOCK": 8}, 128: {"BLOCK": 32}}}}
    # What it has of its own stays.
    table.measured(("prepare", "half", 64), {"BLOCK": 4}, MEASURED, shared)
    assert table.table == {"prepare": {"half": {64: {"BLOCK": 4}, 128: {"BLOCK": 32}}}}
    assert shared == {64: {"BLOCK": 8}, 128: {"BLOCK": 16}}
