"""Folders of a few image files."""

import numpy as np
import pytest
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def smooth(random, height, width):
    """A colour picture without noise, as photographs are: resizing has then little to round."""
    small = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def write_folder(root, random, size, count, suffix="png"):
    """An image-folder of `count` training images a class, half of them for testing; size() is each one's."""
    for part, images in (("train", count), ("val", count // 2)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for number in range(images):
                smooth(random, *size()).save(root / part / name / f"{number:02}.{suffix}")
    return root


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """An image-folder of 3 · 14 training images of 16×16 pixels."""
    return write_folder(tmp_path_factory.mktemp("squares"), np.random.default_rng(1), lambda: (16, 16), count=14)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """An image-folder of 3 · 14 JPEG files of various sizes."""
    random = np.random.default_rng(2)
    size = lambda: random.integers(18, 60, 2).tolist()  # noqa: E731
    return write_folder(tmp_path_factory.mktemp("photographs"), random, size, count=14, suffix="jpg")
