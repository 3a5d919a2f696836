"""Data sets as uint8 tensors, as float32 signals, or as files that are streamed, and batches of normalised views."""

from pathlib import Path

from icckd.data.augmentation import Augmentation
from icckd.data.batches import Batch, Batches, Epochs, WholeBatch, plain_batches
from icckd.data.cifar import load_cifar
from icckd.data.digits import load_digits
from icckd.data.fashion_mnist import load_fashion_mnist
from icckd.data.folders import load_image_folder, load_tiny_imagenet
from icckd.data.image_data import FineLabels, ImageData, People
from icckd.data.signals import load_signals
from icckd.errors import UserError
from icckd.settings import DataSettings, check_text

__all__ = [
    "Augmentation",
    "Batch",
    "Batches",
    "Epochs",
    "FineLabels",
    "ImageData",
    "People",
    "WholeBatch",
    "load_data",
    "plain_batches",
]

_WITH_COARSE_CLASSES = ("cifar10", "cifar100", "digits")
_RESIZABLE = {"image-folder": load_image_folder, "tiny-imagenet": load_tiny_imagenet}


def load_data(settings: DataSettings, *, train: bool = True) -> ImageData:
    """The data set that `settings` names, whole and checked.

    Without `train` no training image is looked at, nor need its file be there: there are none of them, the classes are
    what the rest says, and mean and deviation, unless they are set, those that change nothing, 0 and 1. Signals are
    always looked at, as nothing but data.left_out says which are to be trained on. Raises UserError, naming the file or
    setting and what would be right, where anything is missing or wrong.
    """
    try:
        return _load(settings, train)
    except OSError as error:
        raise UserError(f"data.root: {error.filename or settings.root}: {error.strerror or error}") from error


def _load(settings: DataSettings, train: bool) -> ImageData:
    name = settings.name
    if settings.validation > 0 and not train:
        raise UserError(
            f"data.validation is {settings.validation:g}, a part of the training images, which are not looked at here: "
            "set it to 0"
        )
    if settings.image_size is not None and name not in _RESIZABLE:
        raise UserError(
            f"data.image_size is {settings.image_size}, but {name} cannot be resized; leave it null, or use one of "
            f"{', '.join(_RESIZABLE)}"
        )
    if settings.labels == "coarse" and name not in _WITH_COARSE_CLASSES:
        raise UserError(
            f"data.labels is coarse, but {name} has no coarse classes; use fine, or one of "
            f"{', '.join(_WITH_COARSE_CLASSES)}"
        )
    if settings.root is not None:
        check_text("data.root", settings.root)
    if name == "digits":
        return load_digits(settings, train)
    root = _root(settings)
    if name == "signals":
        return load_signals(root, settings)
    if name == "fashion-mnist":
        return load_fashion_mnist(root, settings, train)
    if root is None:
        raise UserError(f"data.root is not set; give the folder that holds {name}")
    if name in _RESIZABLE:
        return _RESIZABLE[name](root, settings, train)
    return load_cifar(name, root, settings, train)


def _root(settings: DataSettings) -> Path | None:
    if settings.root is None:
        return None
    root = Path(settings.root).expanduser()
    if not root.exists():
        raise UserError(f"data.root {root} does not exist; it should be where {settings.name} is")
    return root
