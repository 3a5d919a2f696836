import hashlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from icckd.data.augmentation import Augmentation
from icckd.data.batches import Batches, _sent
from icckd.data.order import Balance


@pytest.fixture
def images():
    return torch.randint(0, 256, (50, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def make(images, labels=None, **changes):
    channels = images.shape[1] if images.ndim > 1 else 1
    arguments = {
        "batch_size": 8,
        "mean": (0.3,) * channels,
        "std": (0.2,) * channels,
        "augmentation": Augmentation(2, flip=True),
        "views": 2,
        "shuffle": True,
        "seed": 5,
        "device": "cpu",
        "drop_last": True,
    }
    labels = torch.arange(len(images)) if labels is None else labels
    return Batches(images, labels, **{**arguments, **changes})


def flat(batches):
    return [(*batch.views, batch.labels) for batch in batches]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def crop_one_by_one(images, padding, top, left):
    crops = []
    for image, y, x in zip(images.numpy(), top.tolist(), left.tolist(), strict=True):
        channels, height, width = image.shape
        padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), np.uint8)
        padded[:, padding : padding + height, padding : padding + width] = image
        crops.append(padded[:, y : y + height, x : x + width])
    return torch.from_numpy(np.stack(crops))


def test_views_are_crops_of_the_image_that_the_label_belongs_to_mirrored_or_not(images):
    padding = 2
    offsets = 2 * padding + 1
    found = set()
    for batch in make(images, mean=(0.0,) * 3, std=(1 / 255,) * 3).epoch(0):
        for view in batch.views:
            for pixels, label in zip(view.round().to(torch.uint8), batch.labels.tolist(), strict=True):
                everywhere = images[label : label + 1].expand(offsets**2, -1, -1, -1)
                top = torch.arange(offsets).repeat_interleave(offsets)
                left = torch.arange(offsets).repeat(offsets)
                crops = crop_one_by_one(everywhere, padding, top, left)
                places = {(i, False) for i, crop in enumerate(crops) if torch.equal(crop, pixels)}
                places |= {(i, True) for i, crop in enumerate(crops) if torch.equal(crop.flip(-1), pixels)}
                assert len(places) == 1
                found |= places
    # 96 draws out of 50 equally likely ones: about 43 different ones.
    assert len(found) > 30


def test_without_flip_no_image_is_mirrored():
    ramp = torch.arange(8, dtype=torch.uint8).expand(64, 1, 8, 8)
    (batch,) = make(ramp, batch_size=64, augmentation=Augmentation(0, flip=False)).epoch(0)
    assert (batch.views[0].diff(dim=-1) > 0).all()
    (batch,) = make(ramp, batch_size=64, augmentation=Augmentation(0, flip=True)).epoch(0)
    rising = (batch.views[0].diff(dim=-1) > 0).all(dim=-1).all(dim=-1).flatten()
    assert 16 < rising.sum() < 48


def test_views_of_one_batch_differ(images):
    batch = next(make(images).epoch(0))
    assert not torch.equal(*batch.views)


def test_normalisation(images):
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    batches = make(images, mean=mean, std=std, augmentation=None, shuffle=False, batch_size=50, views=1)
    ((view,), labels, *_) = next(iter(batches))
    expected = (images.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(
        3, 1, 1
    )
    assert view.dtype == torch.float32
    assert torch.allclose(view.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(labels, torch.arange(50))


def test_evaluation_goes_through_every_image_in_order(images):
    batches = make(images, augmentation=None, shuffle=False, drop_last=False, views=1)
    assert len(batches) == 7
    labels = [batch.labels for batch in batches]
    assert [len(part) for part in labels] == [8] * 6 + [2]
    assert torch.equal(torch.cat(labels), torch.arange(50))


def test_an_epoch_has_each_image_once_in_an_order_of_its_own(images):
    batches = make(images, drop_last=False)
    orders = [torch.cat([batch.labels for batch in batches.epoch(number)]) for number in (0, 1)]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(50))
    assert not torch.equal(*orders)


def test_drop_last_leaves_out_the_smaller_batch(images):
    batches = make(images)
    assert len(batches) == 6
    assert [len(batch.labels) for batch in batches.epoch(0)] == [8] * 6


@pytest.mark.parametrize("augmentation", [Augmentation(2, flip=True), Augmentation(0, True, 20.0, (0.3, 1.0))])
@pytest.mark.parametrize("first_step", [0, 1, 4, 6])
def test_resuming_at_any_step_gives_the_same_bits(images, augmentation, first_step):
    whole = flat(make(images, augmentation=augmentation).epoch(3))
    torch.manual_seed(first_step)  # Global random state plays no part.
    assert_same(flat(make(images, augmentation=augmentation).epoch(3, first_step=first_step)), whole[first_step:])


def test_interpolated_views_are_normalised_too(images):
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    batches = make(images, mean=mean, std=std, augmentation=Augmentation(0, False, 30.0, (0.3, 1.0)))
    low, high = ((torch.tensor(bound) - torch.tensor(mean)) / torch.tensor(std) for bound in (0.0, 1.0))
    for batch in batches.epoch(0):
        for view in batch.views:
            assert view.dtype == torch.float32
            assert (view.amin(dim=(0, 2, 3)) >= low - 1e-4).all()
            assert (view.amax(dim=(0, 2, 3)) <= high + 1e-4).all()


def test_views_without_augmentation_are_the_images(images):
    batch = next(make(images, augmentation=None, mean=(0.0,) * 3, std=(1 / 255,) * 3).epoch(0))
    assert len(batch.views) == 2
    assert all(torch.equal(view.round().to(torch.uint8), images[batch.indices]) for view in batch.views)


def test_seed_epoch_and_step_all_matter(images):
    same_image = images[:1].expand(50, -1, -1, -1)
    labels = torch.zeros(50, dtype=torch.int64)
    first = flat(make(same_image, labels).epoch(0))
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(first[0][0], flat(make(same_image, labels).epoch(1))[0][0])
    assert not torch.equal(first[0][0], flat(make(same_image, labels, seed=6).epoch(0))[0][0])


def test_large_seeds_are_welcome(images):
    assert len(flat(make(images, seed=2**63 - 1).epoch(0))) == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augmentation", [Augmentation(2, flip=True), Augmentation(0, True, 20.0, (0.3, 1.0))])
def test_gpu_gives_the_same_views(images, augmentation):
    on_cpu = flat(make(images, augmentation=augmentation).epoch(1))
    on_gpu = [[x.cpu() for x in b] for b in flat(make(images, augmentation=augmentation, device="cuda").epoch(1))]
    for a, b in zip(on_cpu, on_gpu, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augmentation", [Augmentation(2, flip=True), Augmentation(0, True, 20.0, (0.3, 1.0))])
def test_steps_on_a_gpu_wait_for_nothing(images, augmentation):
    batches = make(images, augmentation=augmentation, device="cuda").epoch(0)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(batches)) == 5
    finally:
        torch.cuda.set_sync_debug_mode("default")


def content(batches):
    tensors = [x for epoch in (0, 3) for batch in batches.epoch(epoch) for x in (*batch.views, *batch[1:3])]
    return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in tensors)).hexdigest()


@pytest.mark.parametrize(
    ("augmentation", "views", "expected"),
    [
        (None, 1, "c9ae7080f110b4f0"),
        (Augmentation(0, flip=True), 1, "12a78cd903e57acd"),
        (Augmentation(2, flip=False), 2, "2b7342aaa94b097d"),
        (Augmentation(2, flip=True), 2, "07080a0514b20db3"),
    ],
)
def test_a_seed_means_the_same_bits_in_every_version(augmentation, views, expected):
    random = np.random.default_rng
    images = torch.from_numpy(random(7).integers(0, 256, (37, 3, 12, 12), dtype=np.uint8))
    statistics = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.5, 0.2)}
    labels = torch.from_numpy(random(8).integers(0, 5, 37))
    changes = {"augmentation": augmentation, "views": views, "batch_size": 10, "seed": 11, "drop_last": False}
    assert content(make(images, labels, **statistics, **changes)).startswith(expected)


class MixedDevices(TorchDispatchMode):
    """Notes every operation with tensors of other devices than `device`, or with none but a number to return."""

    def __init__(self, device):
        super().__init__()
        self.device, self.found, self.seen = device, [], 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.seen += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if isinstance(result, (bool, int, float)) or any(tensor.device != self.device for tensor in tensors):
            self.found.append(str(operation))
        return result


@pytest.mark.parametrize(
    "augmentation", [None, Augmentation(2, flip=True, rotation=20.0), Augmentation(0, True, 20.0, (0.3, 1.0))]
)
@pytest.mark.parametrize(
    "strong", [{}, {"strong_views": 1, "strong_augmentation": Augmentation(0, True, 9.0, (0.5, 1))}]
)
def test_steps_on_a_device_neither_send_nor_read_anything(images, augmentation, strong):
    # PyTorch's device without data stands for any other than a CPU.
    batches = make(images, augmentation=augmentation, device="meta", drop_last=False, **strong).epoch(2, first_step=1)
    next(batches)
    with MixedDevices(torch.device("meta")) as operations:
        rest = list(batches)
    assert [len(batch.labels) for batch in rest] == [8, 8, 8, 8, 2]
    assert operations.seen > 0
    assert operations.found == []


@pytest.mark.parametrize("augmentation", [Augmentation(2, flip=True), Augmentation(0, True, 20.0, (0.3, 1.0))])
@pytest.mark.parametrize("strong", [{}, {"strong_views": 1, "strong_augmentation": Augmentation(0, False, 20.0)}])
def test_what_is_sent_for_an_epoch_is_what_steps_draw(images, augmentation, strong):
    batches = make(images, augmentation=augmentation, drop_last=False, **strong)
    order = batches._order(1)
    steps = [batches._step(order, 1, step) for step in range(len(batches))]
    sent = list(_sent(steps, torch.device("cpu")))
    assert len(sent) == len(steps)
    for found, expected in zip(sent, steps, strict=True):
        assert torch.equal(found.chosen, expected.chosen)
        for how, wanted in ((found.how, expected.how), (found.strong, expected.strong)):
            assert [x is None for x in how] == [x is None for x in wanted]
            assert all(torch.equal(x, y) for x, y in zip(how, wanted, strict=True) if x is not None)
        assert (found.strong.degrees is not None) == bool(strong)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_parts_are_together_the_whole_batch(images, ranks):
    changes = {"augmentation": Augmentation(2, flip=True, rotation=10.0), "drop_last": False, "batch_size": 12}
    whole = list(make(images, **changes).epoch(1))
    parts = [list(make(images, **changes, part=(rank, ranks)).epoch(1)) for rank in range(ranks)]
    for batch, *shares in zip(whole, *parts, strict=True):
        sizes = [len(share.labels) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        assert batch.whole is None
        for rank, share in enumerate(shares):
            assert share.whole.counts == tuple(sizes)
            start = sum(sizes[:rank])
            own = torch.from_numpy(share.whole.indices)[start : start + sizes[rank]]
            assert torch.equal(own, share.indices)
            assert torch.equal(torch.from_numpy(share.whole.labels), batch.labels)
        for tensors in zip((*batch.views, *batch[1:3]), *((*s.views, *s[1:3]) for s in shares), strict=True):
            assert torch.equal(tensors[0], torch.cat(tensors[1:]))


def test_parts_of_balanced_batches_have_whole_groups(images):
    labels, balance = torch.arange(50) % 5, Balance(4, 2)
    first, second = (next(make(images, labels, balance=balance, part=(rank, 2)).epoch(0)).labels for rank in (0, 1))
    assert [len(first.unique()), len(second.unique()), len(torch.cat([first, second]).unique())] == [2, 2, 4]


def test_balanced_batches_have_their_samples_of_every_class_and_resume(images):
    labels = torch.arange(50) % 5
    batches = make(images, labels, balance=Balance(4, 2))
    whole = list(batches.epoch(2))
    assert len(whole) == len(batches) == 6
    for batch in whole:
        assert torch.equal(batch.labels, labels[batch.indices])
        assert batch.labels.bincount().tolist().count(2) == 4
    assert_same(flat(batches.epoch(2, first_step=4)), flat(whole)[4:])


AREAS = torch.tensor([[0.2, 0.9], [0.8, 1.0], [0.5, 0.5]], dtype=torch.float64)
CROPS = Augmentation(0, flip=True, resized_crop=(0.2, 0.9))


def crops_of_ramps(**changes):
    """Views of images that hold the place of each of their pixels, by class, and the areas of which boxes they are."""
    ramp = torch.arange(64, dtype=torch.uint8).repeat(64, 1)
    images, labels = torch.stack([ramp, ramp.T]).repeat(90, 1, 1, 1), torch.arange(90) % 3
    batches = make(images, labels, mean=(0.0,) * 2, std=(1 / 255,) * 2, augmentation=CROPS, **changes)
    found = [(batch.labels, view) for batch in batches.epoch(1) for view in batch.views]
    labels, views = (torch.cat(parts) for parts in zip(*found, strict=True))
    areas = (views.amax(dim=(2, 3)) - views.amin(dim=(2, 3)) + 1).prod(1) / 64**2
    return tuple([tensor[labels == label] for label in range(3)] for tensor in (views, areas))


def test_each_class_has_its_bounds_of_areas_and_nothing_else_changes():
    views, areas = crops_of_ramps(crop_areas=AREAS)
    for found, (low, high) in zip(areas, AREAS.tolist(), strict=True):
        # A box's sides are whole pixels, of which the smallest has 25.
        assert low - 0.03 < found.min() < low + (high - low) / 5 + 0.03
        assert high - (high - low) / 3 - 0.03 < found.max() < high + 0.03
    plain, _ = crops_of_ramps()
    assert torch.equal(views[0], plain[0])
    assert not torch.equal(views[1], plain[1])
    same, _ = crops_of_ramps(crop_areas=AREAS[:1].expand(3, 2))
    assert all(torch.equal(one, other) for one, other in zip(same, plain, strict=True))


def test_bounds_of_classes_resume_and_are_the_same_in_parts(images):
    changes = {"labels": torch.arange(50) % 3, "augmentation": CROPS, "crop_areas": AREAS, "drop_last": False}
    whole = flat(make(images, **changes).epoch(2))
    assert_same(flat(make(images, **changes).epoch(2, first_step=4)), whole[4:])
    parts = [flat(make(images, **changes, part=(rank, 3)).epoch(2)) for rank in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert all(torch.equal(one, torch.cat(others)) for one, *others in zip(batch, *shares, strict=True))


@pytest.mark.parametrize(
    ("areas", "augmentation", "error", "words"),
    [
        (AREAS, None, ValueError, "it should have a resized_crop"),
        (AREAS, Augmentation(2, flip=True), ValueError, "it should have a resized_crop"),
        (AREAS.float(), CROPS, TypeError, "crop_areas has dtype torch.float32"),
        (AREAS[:2], CROPS, ValueError, "C above 2"),
        (AREAS.flatten(), CROPS, ValueError, r"crop_areas has shape \(6,\)"),
        (AREAS.flip(1), CROPS, ValueError, "0 < low <= high <= 1"),
        (AREAS - 0.2, CROPS, ValueError, "0 < low <= high <= 1"),
    ],
)
def test_wrong_bounds_of_classes(images, areas, augmentation, error, words):
    with pytest.raises(error, match=words):
        make(images, torch.arange(50) % 3, augmentation=augmentation, crop_areas=areas)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"views": 0}, ValueError, "views is 0"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"balance": Balance(3, 4)}, ValueError, "shuffled batches should hold 12"),
        ({"balance": Balance(2, 4), "shuffle": False}, ValueError, "shuffled batches should hold 8"),
        ({"part": (2, 2)}, ValueError, r"part is \(2, 2\)"),
        ({"mean": (0.5,)}, ValueError, "mean has 1 values"),
        ({"std": (0.5, 0.0, 0.5)}, ValueError, "std is"),
        ({"labels": torch.arange(49)}, ValueError, r"labels has shape \(49,\)"),
        ({"labels": torch.zeros(50)}, TypeError, "labels has dtype"),
        ({"images": torch.zeros(50, 3, 9, 7)}, TypeError, "images has dtype"),
        ({"images": torch.zeros(50, 63, dtype=torch.uint8)}, ValueError, "images has shape"),
    ],
)
def test_wrong_arguments(images, changes, error, words):
    with pytest.raises(error, match=words):
        make(**{"images": images, **changes})


def test_signals_are_normalised_and_not_scaled(images):
    signals = 40 * torch.randn(50, 3, 1, 17, generator=torch.Generator().manual_seed(2))
    mean, std = (10.0, -2.0, 0.5), (30.0, 0.1, 4.0)
    for augmentation in (None, Augmentation(0, flip=False)):
        batches = make(signals, mean=mean, std=std, augmentation=augmentation, shuffle=False, drop_last=False)
        for view in range(2):
            found = torch.cat([batch.views[view] for batch in batches])
            expected = torch.stack(
                [(x - m) / s for x, m, s in zip(signals.double().unbind(1), mean, std, strict=True)], 1
            )
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(signals, 40 * torch.randn(50, 3, 1, 17, generator=torch.Generator().manual_seed(2)))


STRONG = Augmentation(0, flip=True, rotation=15.0, resized_crop=(0.5, 1.0))


def test_strong_views_are_the_last_ones_and_leave_the_others_as_they_are(images):
    weak = flat(make(images, views=2))
    for batch, (first, second, labels) in zip(
        make(images, views=4, strong_views=2, strong_augmentation=STRONG).epoch(0), weak, strict=True
    ):
        assert len(batch.views) == 4
        assert torch.equal(batch.labels, labels)
        assert torch.equal(batch.views[0], first)
        assert torch.equal(batch.views[1], second)


def test_strong_views_vary_as_said():
    """By one property of each augmentation: weak views mirror nothing here, strong ones do nothing else."""
    ramp = torch.arange(8, dtype=torch.uint8).expand(64, 1, 8, 8)
    batches = make(
        ramp, batch_size=64, views=3, augmentation=None, strong_views=2, strong_augmentation=Augmentation(0, True)
    )
    (batch,) = batches.epoch(0)
    rising = [(view.diff(dim=-1) > 0).all(dim=-1).all(dim=-1).flatten() for view in batch.views]
    assert rising[0].all()
    assert all(16 < mask.sum() < 48 for mask in rising[1:])
    assert not torch.equal(*rising[1:])


def test_parts_of_strong_views_are_those_of_the_whole_batch(images):
    arguments = {"views": 3, "strong_views": 1, "strong_augmentation": STRONG, "drop_last": False}
    whole = make(images, **arguments).epoch(1)
    parts = [make(images, **arguments, part=(rank, 3)).epoch(1) for rank in range(3)]
    for batch, *pieces in zip(whole, *parts, strict=True):
        for number, view in enumerate(batch.views):
            together = torch.cat([piece.views[number] for piece in pieces])
            assert torch.allclose(together, view, rtol=0, atol=1e-5)


def test_strong_views_resume_at_any_step(images):
    arguments = {"views": 2, "strong_views": 1, "strong_augmentation": STRONG}
    assert_same(flat(make(images, **arguments).epoch(3, first_step=4)), flat(make(images, **arguments).epoch(3))[4:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"strong_views": 2, "strong_augmentation": STRONG},
            "strong_views is 2; it should be 0 or more, and less than",
        ),
        ({"strong_views": -1, "strong_augmentation": STRONG}, "strong_views is -1"),
        ({"strong_views": 1}, "strong_augmentation is None"),
    ],
)
def test_wrong_strong_views_are_refused(images, changes, words):
    with pytest.raises(ValueError, match=words):
        make(images, **changes)
