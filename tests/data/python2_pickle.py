"""Pickles as Python 2's cPickle wrote CIFAR's: protocol 2, byte strings everywhere, numpy 1's names."""

import struct

import numpy as np


def python2_pickle(value):
    """`value`, made of dicts, lists, ints from 0 to 255, str and uint8 arrays, as a protocol 2 pickle."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value):
    if isinstance(value, dict):
        items = b"".join(_pickled(key) + _pickled(item) for key, item in value.items())
        return b"}q\x01(" + items + b"u"
    if isinstance(value, list):
        return b"]q\x02(" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, str):
        return _byte_string(value.encode("latin-1"))
    if isinstance(value, np.ndarray):
        return _array(value)
    return b"K" + bytes([value])


def _byte_string(content):
    if len(content) < 256:
        return b"U" + bytes([len(content)]) + content
    return b"T" + struct.pack("<i", len(content)) + content


def _array(array):
    assert array.dtype == np.uint8
    assert array.ndim == 2
    shape = b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"\x86"
    empty = b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _byte_string(array.tobytes()) + b"tb"
