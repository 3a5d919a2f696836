"""Whole training steps on a GPU: none waits for the device, and captured in a graph they give the same bits."""

import pytest
import torch

from icckd.data import Augmentation, Batches
from icckd.models import build_model
from icckd.settings import settings_from
from icckd.training import TeacherTask, Training

pytestmark = pytest.mark.gpu
CLASSES, IMAGES, BATCH = 10, 640, 64
KINDS = {
    "plain": {"loss.weight": 0.0},
    "second view": {},
    "memory": {"memory.capacity": 8},
    "memory of an average": {"memory.capacity": 8, "memory.average": 0.9, "memory.dtype": "float8"},
    "second view detached": {"positive": "second-view-detached"},
    "previous epoch": {"positive": "previous-epoch"},
    "bfloat16": {"autocast": True, "channels_last": True},
}


@pytest.fixture(autouse=True)
def deterministic_gpu():
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def training(**given):
    chosen = settings_from({f"teacher.{name}": value for name, value in given.items()}, "test").teacher
    torch.manual_seed(0)
    model = build_model("resnet20", classes=CLASSES).to("cuda")
    task = TeacherTask(model, chosen, IMAGES).to("cuda")
    if chosen.channels_last:
        model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    batches = Batches(
        torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator),
        torch.randint(CLASSES, (IMAGES,), generator=generator),
        batch_size=BATCH,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augmentation=Augmentation(crop_padding=4, flip=True),
        views=task.views,
        shuffle=True,
        seed=0,
        device="cuda",
        drop_last=True,
    )
    return Training(task, batches, chosen)


def epochs(trained, count):
    """Train, as `fit` does, without checkpoints; the losses."""
    losses = []
    for trained.epoch in range(count):
        trained.step = 0
        trained._begin_epoch()
        losses += [trained.train_step(batch).clone() for batch in trained.batches.epoch(trained.epoch)]
    return torch.stack(losses).tolist()


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_no_step_waits_for_the_device(settings):
    trained = training(**settings)
    batches = trained.batches.epoch(0)
    for _ in range(2):
        trained.train_step(next(batches))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trained.train_step(next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trained.counts.skipped == 0


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_captured_steps_give_the_same_bits(settings):
    expected, found = training(**settings), training(**settings, cuda_graph=True)
    assert epochs(found, 2) == epochs(expected, 2)
    for x, y in zip(found.task.state_dict().values(), expected.task.state_dict().values(), strict=True):
        assert torch.equal(x, y)
