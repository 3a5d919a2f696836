import numpy as np
import pytest
from sklearn import datasets

from icckd.data import Augmentation, load_data
from icckd.errors import UserError
from icckd.settings import DataSettings


def test_digits_are_scikit_learns_each_once():
    data = load_data(DataSettings())
    source = datasets.load_digits()
    expected = {(np.rint(i * 255 / 16).astype(np.uint8).tobytes(), t) for i, t in zip(source.images, source.target)}  # noqa: B905
    together = [*zip(data.train_images, data.train_labels.tolist(), strict=True)]
    together += [*zip(data.test_images, data.test_labels.tolist(), strict=True)]
    assert len(together) == 1797
    assert {(image.numpy().tobytes(), label) for image, label in together} == expected


def test_digits_test_set_is_a_fifth_of_each_class():
    data = load_data(DataSettings())
    test, train = data.test_labels.bincount(), data.train_labels.bincount()
    assert all(abs(a / (a + b) - 0.2) < 0.01 for a, b in zip(test.tolist(), train.tolist(), strict=True))
    assert data.classes == tuple("0123456789")
    assert data.augmentation == Augmentation(crop_padding=1, flip=False)


def test_validation_holds_out_training_images_only():
    whole, held_out = load_data(DataSettings()), load_data(DataSettings(validation=0.25))
    train = {image.numpy().tobytes() for image in whole.train_images}
    assert {image.numpy().tobytes() for image in held_out.test_images} <= train
    assert len(held_out.train_images) + len(held_out.test_images) == len(whole.train_images)
    assert held_out.mean != whole.mean


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet", "image-folder"])
def test_without_root(name):
    with pytest.raises(UserError, match=rf"data\.root is not set; .*{name}"):
        load_data(DataSettings(name=name))


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100", "tiny-imagenet", "image-folder"])
def test_root_that_holds_nothing(tmp_path, name):
    with pytest.raises(UserError, match=str(tmp_path)):
        load_data(DataSettings(name=name, root=str(tmp_path)))
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_data(DataSettings(name=name, root=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "tiny-imagenet", "image-folder"])
def test_root_that_is_a_file(tmp_path, name):
    path = tmp_path / "file"
    path.write_bytes(b"nothing of use")
    with pytest.raises(UserError, match=str(path)):
        load_data(DataSettings(name=name, root=str(path)))


def test_only_decoded_images_can_be_resized():
    with pytest.raises(UserError, match=r"data\.image_size is 16, but digits cannot be resized"):
        load_data(DataSettings(image_size=16))


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "cifar10", "tiny-imagenet", "image-folder"])
def test_root_that_is_not_utf8(tmp_path, name):
    root = tmp_path / "caf\udce9"
    root.mkdir()
    with pytest.raises(UserError, match=r"data\.root is .*/caf\\udce9', which is not UTF-8"):
        load_data(DataSettings(name=name, root=str(root)))


def test_damaged_names_in_the_file_system_are_printable_in_errors(tmp_path):
    (tmp_path / "a\nb").mkdir()
    with pytest.raises(UserError, match=r"/a\\nb/train does not exist"):
        load_data(DataSettings(name="image-folder", root=str(tmp_path / "a\nb")))
