"""The data set `fashion-mnist` (Xiao, Rasul and Vollgraf, 2017, arXiv 1708.07747), in its IDX files.

An IDX file is two zero bytes, a byte for the element type (8: unsigned bytes), a byte for the number of axes, each
axis's length as a big-endian 32-bit number, and then the elements.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from icckd.data.augmentation import Augmentation
from icckd.data.bounded_read import open_file, read_at_most
from icckd.data.image_data import ImageData, Split, image_data
from icckd.errors import UserError
from icckd.settings import DataSettings

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_LARGEST = 1 << 30
_UNSIGNED_BYTES = 8


def load_fashion_mnist(root: Path | None, settings: DataSettings, with_training: bool) -> ImageData:
    """The images in the folder `root`, or where Debian's package dataset-fashion-mnist puts them if that is None."""
    if root is None and not DEBIAN_FOLDER.is_dir():
        raise UserError(
            "data.root is not set; give the folder that holds Fashion-MNIST's four IDX files, or install Debian's "
            f"package dataset-fashion-mnist, which puts them in {DEBIAN_FOLDER}"
        )
    folder = root or DEBIAN_FOLDER
    train = _split(folder, "train") if with_training else None
    test = _split(folder, "t10k")
    return image_data("fashion-mnist", train, test, CLASSES, Augmentation(crop_padding=2, flip=True), settings)


def read_idx(path: Path, axes: int) -> Tensor:
    """The uint8 tensor with `axes` axes in the IDX file at `path`, plain or .gz.

    Raises UserError, without having read or allocated more, where header and content are not exactly that.
    """
    with open_file(path) as stream:
        header = read_at_most(stream, 4 + 4 * axes)
        if header[:4] != bytes([0, 0, _UNSIGNED_BYTES, axes]) or len(header) < 4 + 4 * axes:
            raise UserError(
                f"{path} begins with {header[:4].hex(' ')}; an IDX file of unsigned bytes with {axes} axes begins "
                f"with 00 00 08 0{axes} and {axes} lengths"
            )
        shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4)]
        size = math.prod(shape)
        if size > _LARGEST:
            raise UserError(f"{path} claims {size} bytes of content; it should be {_LARGEST} at most")
        content = read_at_most(stream, size + 1)
    if len(content) != size:
        found = "more" if len(content) > size else str(len(content))
        raise UserError(f"{path} holds {found} bytes of content; its header says {size} ({'×'.join(map(str, shape))})")
    return torch.frombuffer(content, dtype=torch.uint8).view(shape) if size else torch.empty(shape, dtype=torch.uint8)


def _split(folder: Path, prefix: str) -> Split:
    images = _find(folder, f"{prefix}-images-idx3-ubyte")
    labels = _find(folder, f"{prefix}-labels-idx1-ubyte")
    source = f"{images} with {labels.name}"
    return Split(read_idx(images, axes=3).unsqueeze(1), read_idx(labels, axes=1).long(), source)


def _find(folder: Path, name: str) -> Path:
    # Some distributions write train-images.idx3-ubyte.
    names = [variant + suffix for variant in (name, name.replace("-idx", ".idx")) for suffix in ("", ".gz")]
    for candidate in names:
        if (folder / candidate).is_file():
            return folder / candidate
    raise UserError(f"{folder / name} does not exist, nor does {name}.gz; data.root should be the folder that holds it")
