"""Memory that was freed goes back to the system."""

import os
from pathlib import Path

import pytest
import torch

from icckd.training import heap

needs_glibc = pytest.mark.skipif(heap._glibc() is None, reason="needs Linux with glibc 2.33 or newer")


def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def holes():
    """Every second one of 200 blocks of 1.2 MB: the other half is free, and between them."""
    torch.ones(3_000_000)  # Freed, it has glibc take blocks of this size from the heap.
    return [torch.ones(300_000) for _ in range(200)][::2]


@needs_glibc
@pytest.mark.parametrize("spare", [2**25, 2**40])
def test_what_was_freed_is_given_back_where_it_is_more_than_may_stay(monkeypatch, spare):
    kept = holes()
    monkeypatch.setattr(heap, "SPARE", spare)
    before = held()
    heap.trim_heap()
    given_back = before - held()
    assert given_back > 80e6 if spare == 2**25 else abs(given_back) < 20e6
    assert all((x == 1).all() for x in kept)


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    heap.trim_heap()
