import copyreg
import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest

from icckd.data.restricted_pickle import PickleRejected, read_pickled_dict
from tests.data.python2_pickle import python2_pickle


def arrays():
    random = np.random.default_rng(7)
    return [
        random.integers(0, 256, (5, 12), dtype=np.uint8),
        np.asfortranarray(random.integers(0, 256, (3, 4), dtype=np.uint8)),
        random.integers(-9, 9, 6),
        random.integers(-9, 9, 6).astype(">i4"),
        random.standard_normal((2, 3), dtype=np.float32),
        np.zeros((0, 4), dtype=np.uint8),
    ]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_pickle_writes(protocol):
    written = {
        "labels": [0, 1, 255, 256, -3, 2**40, 2**70],
        "names": ["a", "ä", "x" * 300, ""],
        "nested": [{"a": (1, 2.5), 3: None}, (), (True, False, 1, 2)],
        **{f"array{i}": array for i, array in enumerate(arrays())},
    }
    read = read_pickled_dict(pickle.dumps(written, protocol))
    assert read.keys() == written.keys()
    for key, value in written.items():
        if isinstance(value, np.ndarray):
            assert isinstance(read[key], np.ndarray)
            assert read[key].dtype == value.dtype
            assert np.array_equal(read[key], value)
        else:
            assert read[key] == value


def test_reads_python_2_pickles():
    data = np.random.default_rng(8).integers(0, 256, (4, 100), dtype=np.uint8)
    read = read_pickled_dict(python2_pickle({"data": data, "labels": [3, 1], "batch_label": "batch 1 of 5"}))
    assert np.array_equal(read["data"], data)
    assert read["data"].dtype == np.uint8
    assert (read["labels"], read["batch_label"]) == ([3, 1], "batch 1 of 5")


def test_byte_string_keys_become_strings():
    assert read_pickled_dict(pickle.dumps({b"data": 1, "labels": b"x"})) == {"data": 1, "labels": b"x"}


class Call:
    """Pickles as a call of `function` with `arguments`, and further parts of what __reduce__ may return."""

    def __init__(self, function, *arguments, rest=()):
        self.parts = (function, arguments, *rest)

    def __reduce__(self):
        return self.parts


def hostile_objects(flag):
    touch = f"open({flag!r}, 'w').close()"
    yield Call(os.system, f"touch {flag}")
    yield Call(eval, touch)
    yield Call(exec, touch)
    yield Call(subprocess.call, ["touch", flag])
    yield Call(getattr, Fraction, "__init__")
    yield Call(copyreg._reconstructor, Call, object, None)
    yield Call(np.load, flag)
    yield Call(np.frombuffer, b"ab")
    yield Call(np.ndarray, (1 << 40,))
    yield Call(dict, [], rest=(None, iter([Call(os.system, f"touch {flag}")])))
    yield OrderedDict(a=Call(os.system, f"touch {flag}"))
    yield Call(bytearray, 1 << 40)
    yield {"key": [({"inner": Call(os.system, f"touch {flag}")},)]}
    yield np.array([Call(os.system, f"touch {flag}")], dtype=object)
    yield np.dtype(object)
    yield np.array([("a", 1)], dtype=[("name", "U1"), ("count", "i4")])
    yield np.array(["text"])
    yield Fraction(1, 3)
    yield {1, 2}
    yield complex(1, 2)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_no_code_runs(tmp_path, protocol):
    flag = str(tmp_path / "flag")
    for hostile in hostile_objects(flag):
        for written in (hostile, {"data": hostile}, {"data": [hostile], "labels": []}):
            with pytest.raises(PickleRejected):
                read_pickled_dict(pickle.dumps(written, protocol))
    assert not os.path.exists(flag)


def test_the_hostile_pickles_are_hostile(tmp_path):
    flag = tmp_path / "flag"
    pickle.loads(pickle.dumps(next(hostile_objects(str(flag)))))
    assert flag.exists()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
U1 = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"cos\nsystem\n(U\x04truetR", "os.system"),
        (text(b"os") + text(b"system") + b"\x93" + text(b"true") + b"\x85R", "os.system"),
        (b"(cos\nsystem\nU\x04trueo", "os.system"),
        (b"(U\x04trueios\nsystem\n", "instruction INST"),
        (b"cnumpy\nndarray\n)\x81", "instruction NEWOBJ"),
        (b"cnumpy\nndarray\n(K\x01\x85tR", "no known function"),
        (b"cnumpy\nndarray\n}b", "no tuple"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(NNtb", "what has none"),
        (b"\x82\x01", "instruction EXT1"),
        (b"U\x01aQ", "instruction BINPERSID"),
        (b"Pabc\n", "instruction PERSID"),
        (b"\x97", "instruction NEXT_BUFFER"),
        (b"]K\x01\x85K\x02s", "no dictionary"),
        (b"}K\x01\x85K\x02s", "neither string nor number"),
        (b"}K\x01a", "no list"),
        (b"j\xff\xff\xff\xff", "damaged"),
        (b"aaaa", "no list"),
        (b"RRRR", "no known function"),
        (b"\x87\x87", "more from its stack"),
        (b"c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR", "bytes with arguments"),
        (b"u", "damaged"),
        (b"]]\x93", "no name"),
        (b"c_codecs\nencode\n(" + text(b"x") + b"U\x05rot13tR", "Latin-1"),
        (b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR", "else than numbers"),
        (b"cnumpy\ndtype\n(U\x02f1K\x00K\x01tR", "else than numbers"),
        (b"cnumpy\ndtype\n(" + b"](K\x01lltR", "instruction LIST"),
        (ARRAY + b"(K\x01K\x04\x85" + U1 + b"K\x00U\x03abctb", "does not fill its shape"),
        (ARRAY + b"(K\x01J\xff\xff\xff\xff\x85" + U1 + b"K\x00U\x03abctb", "lengths"),
        (ARRAY + b"(K\x01K\x03" + U1 + b"K\x00U\x03abctb", "lengths"),
        (ARRAY + b"(K\x01K\x03\x85U\x02u1K\x00U\x03abctb", "no array's"),
        (b"B\xff\xff\xff\x7fabc", "damaged"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc", "damaged"),
    ],
)
def test_hostile_instructions(body, words):
    with pytest.raises(PickleRejected, match=words):
        read_pickled_dict(b"\x80\x04}" + text(b"data") + body + b"s.")


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x02}", b"\x80\x02].", b".", b"not a pickle", b"\xff" * 9])
def test_damaged_pickles(data):
    with pytest.raises(PickleRejected):
        read_pickled_dict(data)


def test_every_truncation_and_many_flipped_bytes_are_refused_or_read():
    whole = python2_pickle({"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2, 3]})
    for length in range(len(whole)):
        with pytest.raises(PickleRejected):
            read_pickled_dict(whole[:length])
    random = np.random.default_rng(9)
    for _ in range(3000):
        flipped = bytearray(whole)
        flipped[random.integers(len(whole))] = random.integers(256)
        with suppress(PickleRejected):
            read_pickled_dict(flipped)


def test_deep_nesting_and_shared_structure_are_harmless():
    deep = b"\x80\x04}" + text(b"a") + b")" + b"\x85" * 300_000 + b"s."
    assert list(read_pickled_dict(deep)) == ["a"]
    doubling = b"\x80\x04}" + text(b"a") + b")" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(100)) + b"s."
    assert list(read_pickled_dict(doubling)) == ["a"]
    as_name = b"\x80\x04}" + text(b"a") + b")" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(100))
    with pytest.raises(PickleRejected, match="no name"):
        read_pickled_dict(as_name + text(b"system") + b"\x93s.")
