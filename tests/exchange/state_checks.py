"""Memories and embeddings that are divided among ranks, against one process's."""

import numpy as np
import pytest
import torch

from icckd import ClassMemory, IntraClassContrastiveLoss
from icckd.exchange import Ranks
from icckd.memory import memory_bytes
from icckd.training.tasks.embeddings import LatestEmbeddings
from tests.exchange.owner_checks import DIM, Rows, check_one_batch, counts_of, one_batch

CLASSES, CAPACITY, IMAGES = 41, 3, 23


def check_a_memory_in_parts_is_one(here, dtype):
    """Pushed where the rows are after a loss, or sent there, it holds what one process's does, row for row."""
    part = ClassMemory(CLASSES, CAPACITY, DIM, dtype, here.group)
    single = ClassMemory(CLASSES, CAPACITY, DIM, dtype)
    for step, labels in enumerate(("many", "dominated", "few")):
        rows = Rows(counts_of(here), labels, torch.float32, seed=step)
        anchor, positive, own_labels, gate = rows.of(here.rank)
        ranks = rows.known(here, "auto")
        module = IntraClassContrastiveLoss(group=here.group)
        loss = module(anchor.requires_grad_(), positive, own_labels, gate, part, group=ranks)
        assert ranks.strategy == "owner"
        # Autograd is done with what arrived before it is pushed.
        loss.backward()
        if step == 0:
            part.push(*ranks.arrived)
        else:
            part.push(anchor, own_labels, group=here.group if step == 1 else ranks)
        single.push(rows.anchor, rows.labels)
        check_whole(here, part, single)
    rows_of, labels = single.tensors()
    own = (labels >= 0) & (labels % here.size == here.rank)
    for x, y in zip((rows_of[own], labels[own]), part.tensors(), strict=True):
        assert torch.equal(x, y[part.tensors()[1] >= 0])
    return part, single


def check_whole(here, part, single):
    state = part.whole_state(here.group)
    assert (state is None) == (here.rank > 0)
    if state is not None:
        assert state.keys() == single.state_dict().keys()
        assert all(torch.equal(state[name], whole) for name, whole in single.state_dict().items())


def check_it_is_loaded_by_any_number_of_ranks(here, part, single):
    loaded = ClassMemory(CLASSES, CAPACITY, DIM, part.dtype, here.group)
    loaded.load_whole_state(single.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(loaded.buffers(), part.buffers(), strict=True))
    loaded.reset()
    assert len(loaded) == 0


def check_its_rows_are_negatives_of_all_ranks(here, part, single):
    rows = Rows(counts_of(here), "many")
    memory, memory_labels = single.tensors()
    for reduction in ("mean", "none"):
        expected = one_batch(rows, reduction, memory=memory.double(), memory_labels=memory_labels)
        own = dict(zip(("memory", "memory_labels"), part.tensors(), strict=True))
        check_one_batch(here, rows, expected, reduction, rows.known(here, "owner"), **own)


def check_rows_of_others_are_refused(here):
    part = ClassMemory(CLASSES, CAPACITY, DIM, group=here.group)
    other = 0 if here.rank else 1
    with pytest.raises(
        ValueError, match=f"labels holds {other}, a class that rank {other} owns, not {here.rank}: give the group"
    ):
        part.push(torch.ones(CLASSES, DIM), torch.arange(CLASSES))
    assert len(part) == 0
    own = torch.arange(here.rank, CLASSES, here.size)
    part.push(torch.ones(len(own) + 1, DIM), torch.cat([own, torch.tensor([-1])]))
    assert sorted(part.tensors()[1].unique().tolist()) == [-1, *range(here.rank, CLASSES, here.size)]
    assert len(part) == len(range(here.rank, CLASSES, here.size))
    with pytest.raises(ValueError, match=f"labels reach {CLASSES}; they should be below num_classes = {CLASSES}"):
        part.push(torch.ones(1, DIM), torch.tensor([CLASSES]))
    with pytest.raises(ValueError, match=f"labels reach {CLASSES}; they should be below num_classes = {CLASSES}"):
        part.push(torch.ones(1, DIM), torch.tensor([CLASSES]), group=here.group)
    with pytest.raises(ValueError, match=f"memory holds part 0 of 1; it should hold part {here.rank} of {here.size}"):
        ClassMemory(CLASSES, CAPACITY, DIM).push(torch.ones(1, DIM), torch.tensor([0]), group=here.group)
    held = part.tensors()[0]
    assert memory_bytes(CLASSES, CAPACITY, DIM, torch.float32, here.size) == held.numel() * held.element_size()


def check_embeddings_in_parts_are_one(here):
    part, single = LatestEmbeddings(IMAGES, DIM, here.group), LatestEmbeddings(IMAGES, DIM)
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        counts = [[3, 5, 0, 2], [0, 7, 0, 1], [4, 4, 4, 4]][step][: here.size]
        indices = torch.randperm(IMAGES, generator=generator)[: sum(counts)]
        features = torch.randn(sum(counts), DIM, generator=generator)
        features[1, 0] = torch.nan
        ranks = Ranks.known(here.group, counts, indices=indices.numpy())
        own, rows = (x.split(counts)[here.rank] for x in (indices, features))
        for x, y in zip(part.find(own, ranks), single.find(own), strict=True):
            assert torch.equal(x, y)
        taken = torch.tensor(step != 1)
        part.keep(own, rows.bfloat16() if step == 2 else rows, taken, ranks)
        single.keep(indices, features.bfloat16() if step == 2 else features, taken)
        check_whole(here, part, single)
    loaded = LatestEmbeddings(IMAGES, DIM, here.group)
    loaded.load_whole_state(single.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(loaded.buffers(), part.buffers(), strict=True))
    assert single.known.any()
    with pytest.raises(ValueError, match="indices are None; they should be told"):
        part.find(own, Ranks.known(here.group, counts))
    with pytest.raises(ValueError, match=r"indices has shape \(1,\); it should be"):
        Ranks.known(here.group, counts, indices=np.zeros(1, np.int64))


def every_check(here):
    for dtype in (torch.float32, torch.float8_e4m3fn):
        part, single = check_a_memory_in_parts_is_one(here, dtype)
        check_it_is_loaded_by_any_number_of_ranks(here, part, single)
        check_its_rows_are_negatives_of_all_ranks(here, part, single)
    check_rows_of_others_are_refused(here)
    check_embeddings_in_parts_are_one(here)
