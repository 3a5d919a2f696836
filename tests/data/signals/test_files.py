"""Files of signals: what is read of whole ones, and what is said of others."""

import csv
import zipfile

import numpy as np
import pytest

from icckd.data.signals.files import read_windows
from icckd.errors import UserError


def windows(count=6, channels=2, length=9, seed=0):
    """Arrays of random windows of two people at three activities, as .npz files hold them."""
    random = np.random.default_rng(seed)
    return {
        "signals": random.standard_normal((count, channels, length)),
        "activity": np.array(["walk", "run", "sit"])[np.arange(count) % 3],
        "person": np.array([7, 12])[np.arange(count) // 3 % 2],
    }


def write_csv(path, arrays, header=("window", "person", "activity", "x", "y"), change=None):
    """The same windows, a row per time step; `change(rows)` spoils the rows, the header first."""
    rows = [list(header)]
    for number, (signal, activity, person) in enumerate(zip(*arrays.values(), strict=True)):
        rows += [[number, person, activity, *map(repr, map(float, sample))] for sample in signal.T]
    if change:
        change(rows)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def test_both_kinds_of_files_are_read_together(tmp_path):
    first, second = windows(6, seed=1), windows(4, seed=2)
    np.savez(tmp_path / "b.npz", **first)
    write_csv(tmp_path / "a.csv", second)
    (tmp_path / ".hidden").write_text("not looked at")
    found = read_windows(tmp_path)
    signals = np.concatenate([second["signals"], first["signals"]]).astype(np.float32)
    np.testing.assert_array_equal(found.signals, signals)
    assert found.signals.dtype == np.float32
    assert found.activities == ("run", "sit", "walk")
    assert found.people == ("7", "12")  # By number, where all are numbers.
    for indices, names, name in (
        (found.activity, found.activities, "activity"),
        (found.person, found.people, "person"),
    ):
        assert [names[index] for index in indices] == [*map(str, second[name]), *map(str, first[name])]


def test_columns_stand_in_any_order_and_empty_lines_count_for_nothing(tmp_path):
    arrays = windows(3)

    def turned(rows):
        rows[:] = [[row[i] for i in (3, 1, 0, 4, 2)] for row in rows]
        rows.insert(5, [])

    write_csv(tmp_path / "a.csv", arrays, change=turned)
    found = read_windows(tmp_path)
    np.testing.assert_array_equal(found.signals, arrays["signals"].astype(np.float32))


def test_a_file_may_be_one_window(tmp_path):
    arrays = windows(3)
    first, second, third = ({name: array[i] for name, array in arrays.items()} for i in range(3))
    np.savez(tmp_path / "a.npz", **first)
    np.savez(tmp_path / "b.npz", acceleration=second.pop("signals"), **second)

    def without_window(rows):
        rows[:] = [row[1:] for row in rows]

    write_csv(tmp_path / "c.csv", {name: np.stack([array]) for name, array in third.items()}, change=without_window)
    found = read_windows(tmp_path)
    np.testing.assert_array_equal(found.signals, arrays["signals"].astype(np.float32))
    assert [found.activities[i] for i in found.activity] == [*arrays["activity"]]


def test_integers_and_bytes_are_read_and_names_are_compared_in_one_form(tmp_path):
    arrays = windows(6)
    whole = {
        **arrays,
        "signals": np.arange(108, dtype=np.int16).reshape(6, 2, 9),
        "activity": arrays["activity"].astype("S"),
    }
    np.savez(tmp_path / "a.npz", **whole)
    np.savez(tmp_path / "b.npz", **{**arrays, "person": np.array(["Ame\u0301lie", "Am\u00e9lie"] * 3)})
    found = read_windows(tmp_path)
    assert found.activities == ("run", "sit", "walk")
    assert found.people == ("12", "7", "Am\u00e9lie")
    np.testing.assert_array_equal(found.signals[:6], whole["signals"])


def test_names_that_are_numbers_are_sorted_by_number_however_long(tmp_path):
    people = ["10" * 2500, "2", "010", "9", "00", "10"]
    np.savez(tmp_path / "a.npz", **{**windows(6), "person": np.array(people)})
    assert read_windows(tmp_path).people == ("00", "2", "9", "010", "10", "10" * 2500)


def without(name):
    return lambda arrays: arrays.pop(name)


def replaced(name, value):
    return lambda arrays: arrays.update({name: value(arrays[name])})


def spoilt(value):
    def change(signals):
        signals[4, 1, 3] = value
        return signals

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("person"), "lacks the array person"),
        (replaced("signals", spoilt(np.nan)), "window 4 is nan in channel 1 at sample 3"),
        (replaced("signals", spoilt(-np.inf)), "window 4 is -inf in channel 1 at sample 3"),
        (replaced("signals", spoilt(1e30)), "window 4 is 1e[+]30 in channel 1"),
        (replaced("signals", lambda x: spoilt(np.inf)(x.astype(np.float16))), "window 4 is inf in channel 1"),
        (replaced("signals", lambda x: spoilt(-(2**63))(x.astype(np.int64))), "window 4 is -9223372036854775808 in"),
        (
            replaced("signals", lambda x: x[0]),
            r"signals has shape \(2, 9\); it should be \(windows, channels, length\)",
        ),
        (replaced("signals", lambda x: x[:0]), "holds no windows"),
        (replaced("signals", lambda x: x[:, :, :7]), "windows of 7 samples"),
        (replaced("signals", lambda x: x[:, :0]), "windows of 0 channels"),
        (replaced("signals", lambda x: x.astype(str)), "signals holds <U.*it should hold numbers"),
        (replaced("activity", lambda x: x[:5]), r"activity has shape \(5,\); it should be \(6,\)"),
        (replaced("activity", lambda x: x.astype(object)), "activity holds Python objects, which are not unpickled"),
        (replaced("person", lambda x: x / 2), "person holds float64; it should hold integers or strings"),
        (replaced("person", lambda x: np.array([" "] * 6)), "person holds an empty name"),
        (replaced("person", lambda x: np.array([b"\xff"] * 6)), "person holds bytes that are not UTF-8"),
        (replaced("person", lambda x: np.array(["\ud800"] * 6)), "not Unicode text"),
    ],
)
def test_arrays_that_are_wrong(tmp_path, change, message):
    arrays = windows()
    change(arrays)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        read_windows(tmp_path)
    assert str(tmp_path / "a.npz") in str(error.value)


def broken(path, how):
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "text": b"window,person\n",
            "half": whole[: len(whole) // 2],
            "pickle": b"\x80\x04]\x94.",
            "changed": whole.replace(whole[600:640], bytes(40)),
        }[how]
    )


@pytest.mark.parametrize("how", ["empty", "text", "half", "pickle", "changed"])
def test_archives_that_are_not_whole(tmp_path, how):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **windows())
    broken(path, how)
    with pytest.raises(UserError, match=r"a\.npz is no whole \.npz file"):
        read_windows(tmp_path)


@pytest.mark.parametrize(("shape", "message"), [("(2000000000, 2, 9)", "claims to be"), ("(6, 2, 8", "no whole")])
def test_headers_that_lie(tmp_path, shape, message):
    arrays = windows()
    np.savez(tmp_path / "a.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    true = b"(6, 2, 9), }"
    lie = f"{shape}, }}".encode()
    header = members["signals.npy"]
    place = header.index(true)
    members["signals.npy"] = header[:place] + lie + header[place + max(len(true), len(lie)) :]
    if len(lie) < len(true):
        members["signals.npy"] = header.replace(true, lie.ljust(len(true)))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=message):
        read_windows(tmp_path)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "a.npz", **{**windows(), "person": np.array([Trap()] * 6, dtype=object)})
    with pytest.raises(UserError, match="not unpickled"):
        read_windows(tmp_path)


def set_field(row, column, value):
    def change(rows):
        rows[row][column] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field(0, 1, "who"), "lacks person; there should be person, activity, one"),
        (set_field(0, 4, "x"), "the column 'x' twice"),
        (set_field(0, 4, ""), "without a name"),
        (set_field(12, 3, "many"), "line 13: x is 'many'; it should be a number"),
        (set_field(12, 3, ""), "line 13: x is ''; it should be a number"),
        (set_field(12, 4, "nan"), "line 13: y is nan; it should be finite"),
        (set_field(12, 4, "1e40"), "line 13: y is 1e40; it should be .*1e[+]18 at most|line 13: y is 1e40"),
        (set_field(14, 1, "99"), "line 15: person is 99 within the window 1, which began as 7"),
        (set_field(14, 2, "fly"), "line 15: activity is fly within the window 1"),
        (set_field(14, 2, "a" * 201), "line 15: activity has 201 letters; it should have 200 at most"),
        (lambda rows: rows.pop(), "the window 5 has 8 rows; it should have 9, as the first"),
        (lambda rows: rows[20].pop(), "line 21 has 4 fields; it should have 5, as the header"),
        (lambda rows: rows[20].append("1"), "line 21 has 6 fields"),
        (lambda rows: rows.__setitem__(slice(1, None), []), "holds no rows beneath its header"),
        (lambda rows: rows.clear(), "has no header"),
        (lambda rows: [row.__delitem__(slice(3, 5)) for row in rows], "has no columns besides window, person"),
        (lambda rows: rows.__setitem__(slice(8, None), []), "windows of 7 samples"),
    ],
)
def test_tables_that_are_wrong(tmp_path, change, message):
    write_csv(tmp_path / "a.csv", windows(), change=change)
    with pytest.raises(UserError, match=message) as error:
        read_windows(tmp_path)
    assert str(tmp_path / "a.csv") in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no header"),
        (b"window,person,activity,x\n\xff\xfe", "is not UTF-8"),
        (b'window,person,activity,x\n"1"2,a,b,3\n', "line 2 is no line of a .csv file"),
        (b"window,person,activity,x\n1,a,b," + b"1" * 140_000, "line 2 is no line of a .csv file"),
        (b"window;person;activity;x\n1;a;b;3\n", "lacks person"),
    ],
)
def test_texts_that_are_no_tables(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_windows(tmp_path)


def test_a_file_differs_from_the_first(tmp_path):
    np.savez(tmp_path / "a.npz", **windows())
    np.savez(tmp_path / "b.npz", **windows(length=10))
    with pytest.raises(UserError, match=r"b\.npz holds windows of 10 samples; there should be 9, as in .*a\.npz"):
        read_windows(tmp_path)
    np.savez(tmp_path / "b.npz", **windows(channels=3))
    with pytest.raises(UserError, match=r"b\.npz holds windows of 3 channels; there should be 2, as in .*a\.npz"):
        read_windows(tmp_path)
    (tmp_path / "b.npz").unlink()
    write_csv(tmp_path / "b.csv", windows())
    write_csv(tmp_path / "c.csv", windows(), header=("window", "person", "activity", "y", "x"))
    with pytest.raises(UserError, match=r"c\.csv has the channels y, x; they should be x, y, as in .*b\.csv"):
        read_windows(tmp_path)


def test_what_else_a_folder_holds(tmp_path):
    with pytest.raises(UserError, match="is empty"):
        read_windows(tmp_path)
    np.savez(tmp_path / "a.npz", **windows())
    with pytest.raises(UserError, match=r"a\.npz is a file; data\.root should be the folder"):
        read_windows(tmp_path / "a.npz")
    (tmp_path / "notes.txt").write_text("of the sensors")
    with pytest.raises(UserError, match=r"notes\.txt is no \.npz or \.csv file"):
        read_windows(tmp_path)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "c.csv").mkdir()
    with pytest.raises(UserError, match=r"c\.csv is no"):
        read_windows(tmp_path)
