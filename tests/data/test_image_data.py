import numpy as np
import pytest
import torch

from icckd.data.augmentation import Augmentation
from icckd.data.image_data import Split, channel_counts, channel_statistics, hold_out, image_data, part_of, train_part
from icckd.errors import UserError
from icckd.settings import AugmentationSettings, DataSettings, StrongAugmentationSettings


def split(labels, channels=1, size=8, source="some file"):
    generator = torch.Generator().manual_seed(len(labels))
    images = torch.randint(0, 256, (len(labels), channels, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.tensor(labels, dtype=torch.int64), source)


def build(train, test, classes=("a", "b"), **settings):
    return image_data("set", train, test, classes, Augmentation(1, flip=False), DataSettings(**settings))


def test_hold_out_takes_the_fraction_of_each_class_and_keeps_labels_with_images():
    labels = [0] * 30 + [1] * 10 + [2] * 2
    whole = split(labels)
    rest, held_out = hold_out(whole, 0.3)
    assert held_out.labels.bincount().tolist() == [9, 3, 1]
    assert rest.labels.bincount().tolist() == [21, 7, 1]
    label_of = {image.numpy().tobytes(): label for image, label in zip(whole.images, labels, strict=True)}
    together = [*zip(*rest[:2], strict=True), *zip(*held_out[:2], strict=True)]
    assert {image.numpy().tobytes() for image, _ in together} == label_of.keys()
    assert all(label_of[image.numpy().tobytes()] == label for image, label in together)


def test_hold_out_is_the_same_every_time():
    whole = split([0, 1] * 50)
    first = hold_out(whole, 0.5)
    np.random.default_rng().permutation(3)
    torch.manual_seed(99)
    second = hold_out(whole, 0.5)
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_hold_out_leaves_an_image_of_every_class_on_both_sides(fraction):
    for part in hold_out(split([0, 1, 2] * 4), fraction):
        assert part.labels.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 1.0])
def test_a_part_has_its_fraction_of_every_class_and_at_least_one(fraction):
    whole = split([2] * 3 + [0] * 30 + [1] * 11)
    part = part_of(whole, fraction)
    assert part.labels.bincount().tolist() == [max(round(fraction * n), 1) for n in (30, 11, 3)]
    place = {image.numpy().tobytes(): k for k, image in enumerate(whole.images)}
    places = [place[image.numpy().tobytes()] for image in part.images]
    assert places == sorted(places)
    assert [whole.labels[k] for k in places] == part.labels.tolist()


def test_smaller_parts_are_parts_of_larger_ones():
    whole = split([0, 1, 2] * 40)
    parts = [{x.numpy().tobytes() for x in part_of(whole, fraction).images} for fraction in (0.1, 0.3, 0.9)]
    assert parts[0] < parts[1] < parts[2]


def test_what_is_trained_on_is_a_part_of_what_validation_leaves():
    train, test = split([0, 1] * 20), split([0, 1])
    whole, part = (build(train, test, validation=0.25, train_fraction=f) for f in (1.0, 0.5))
    assert torch.equal(whole.test_images, part.test_images)
    assert len(part.train_images) == 16
    assert {x.numpy().tobytes() for x in part.train_images} < {x.numpy().tobytes() for x in whole.train_images}
    assert part.mean == channel_statistics(channel_counts(part.train_images))[0] != whole.mean


def test_given_statistics_are_those_in_force():
    train, test = split([0, 1] * 5, channels=3), split([0, 1], channels=3)
    found = channel_statistics(channel_counts(train.images))
    assert build(train, test, mean=[0.1, 0.2, 0.3]).mean == (0.1, 0.2, 0.3)
    assert build(train, test, mean=[0.1, 0.2, 0.3]).std == found[1]
    assert build(train, test, std=[0.4, 0.5, 0.6]).std == (0.4, 0.5, 0.6)
    for name in ("mean", "std"):
        with pytest.raises(UserError, match=rf"data\.{name} has 1 values; it should have 3, one per channel"):
            build(train, test, **{name: [0.5]})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Augmentation(1, False)),
        ({"crop_padding": 0, "flip": True, "rotation": 20.0}, Augmentation(0, True, 20.0)),
        ({"resized_crop": [0.08, 1.0]}, Augmentation(0, False, 0.0, (0.08, 1.0))),
        ({"crop_padding": 7}, Augmentation(7, False)),
    ],
)
def test_augmentation_is_the_data_sets_own_where_nothing_else_is_said(settings, expected):
    assert build(split([0, 1]), split([0, 1]), augmentation=AugmentationSettings(**settings)).augmentation == expected


def test_strong_augmentation_has_defaults_of_its_own():
    train, test = split([0, 1]), split([0, 1])
    assert build(train, test).strong_augmentation == Augmentation(0, False, 15.0, (0.5, 1.0))
    gentle = StrongAugmentationSettings(rotation=3.0, resized_crop=None)
    data = build(train, test, strong_augmentation=gentle, augmentation=AugmentationSettings(flip=True))
    assert (data.augmentation, data.strong_augmentation) == (Augmentation(1, True), Augmentation(1, False, 3.0))
    with pytest.raises(UserError, match=r"data\.strong_augmentation\.crop_padding is 9; the images' side is 8"):
        build(train, test, strong_augmentation=StrongAugmentationSettings(crop_padding=9, resized_crop=None))


def test_padding_beyond_the_image_is_refused():
    with pytest.raises(UserError, match=r"data\.augmentation\.crop_padding is 8; the images' side is 8"):
        build(split([0, 1]), split([0, 1]), augmentation=AugmentationSettings(crop_padding=8))


def test_part_of_the_training_images_takes_the_place_of_test_with_all_that_is_known_of_them():
    train = split([0, 1] * 50)
    train.images[:] = torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1)  # Each tells which it is.
    whole = build(train, split([0, 1]), label_noise="partial:0.5")
    part = train_part(whole, 0.3, "some.setting")
    places = [images[:, 0, 0, 0].long() for images in (part.train_images, part.test_images)]
    assert sorted(torch.cat(places).tolist()) == list(range(100))
    for labels, chosen in zip((part.train_labels, part.test_labels), places, strict=True):
        assert torch.equal(labels, whole.train_labels[chosen])
        assert chosen.tolist() == sorted(chosen.tolist())
    assert torch.equal(part.candidates, whole.candidates[places[0]])
    counts = whole.train_labels.bincount()
    assert part.test_labels.bincount().tolist() == (0.3 * counts).round().tolist()
    with pytest.raises(UserError, match=r"one image of class 1; some\.setting needs at least 2 images of each class"):
        train_part(build(split([0, 0, 1]), split([0, 1])), 0.3, "some.setting")


def test_validation_takes_the_place_of_test():
    train, test = split([0, 1] * 20), split([0, 1])
    data = build(train, test, validation=0.25)
    assert (len(data.train_images), len(data.test_images)) == (30, 10)
    assert build(train, test).test_images is test.images


def test_statistics_are_of_the_training_images_per_channel():
    train = split([0, 1] * 20, channels=3)
    train.images[:, 2] //= 3
    data = build(train, split([0, 1], channels=3))
    scaled = train.images.double() / 255
    assert data.mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(scaled.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-12)


def test_a_constant_channel_has_a_deviation_to_divide_by():
    white = torch.full((4, 1, 8, 8), 255, dtype=torch.uint8)
    assert channel_statistics(channel_counts(white)) == ((1.0,), (1 / 255,))


@pytest.mark.parametrize("colour", [(0,), (255,), (0, 0, 0), (255, 3, 0)])
@pytest.mark.parametrize("validation", [0, 0.25])
def test_training_images_of_one_constant_value_are_refused(colour, validation):
    train, test = (split([0, 1] * 4, channels=len(colour)) for _ in range(2))
    train.images[:] = torch.tensor(colour, dtype=torch.uint8).view(-1, 1, 1)
    with pytest.raises(
        UserError, match=f"some file holds .* training images with the value {str(colour)[1:-1].rstrip(',')} in"
    ):
        build(train, test, validation=validation)


def test_images_that_are_each_constant_but_differ_are_fine():
    train, test = split([0, 1]), split([0, 1])
    train.images[:] = torch.tensor([7, 8], dtype=torch.uint8).view(-1, 1, 1, 1)
    assert build(train, test).mean == (7.5 / 255,)
    test.images[:] = 9
    assert len(build(train, test).test_images) == 2


@pytest.mark.parametrize(
    ("train", "test", "validation", "words"),
    [
        (split([]), split([0, 1]), 0, "no images"),
        (split([0, 1]), split([]), 0, "no images"),
        (split([0, 1])._replace(labels=torch.tensor([0])), split([0, 1]), 0, "2 images but 1 labels"),
        (split([0, 2]), split([0, 1]), 0, "the label 2; labels should be from 0 to 1"),
        (split([0, -1]), split([0, 1]), 0, "the label -1"),
        (split([0, 0]), split([0, 1]), 0, "one class only"),
        (split([0, 1]), split([0, 1], size=9), 0, "1×9×9 images; they should be 1×8×8"),
        (split([0, 1]), split([0, 1], channels=3), 0, "3×8×8 images; they should be 1×8×8"),
        (split([0, 1]), split([0, 1]), 0.5, "data.validation needs at least 2 images"),
        (split([0, 1])._replace(images=torch.zeros(2, 1, 8, 9, dtype=torch.uint8)), split([0, 1]), 0, "square"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(train, test, validation, words):
    with pytest.raises(UserError, match=words) as caught:
        build(train, test, validation=validation)
    assert "some file" in str(caught.value)
