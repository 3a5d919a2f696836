"""The data set `digits`: scikit-learn's 1797 handwritten digits, 8×8 pixels, built in.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998 (its test
part, which is what scikit-learn carries).
"""

import numpy as np
import torch

from icckd.data.augmentation import Augmentation
from icckd.data.image_data import CoarseClasses, ImageData, Split, hold_out, image_data
from icckd.settings import DataSettings

_TEST_FRACTION = 0.2


def load_digits(settings: DataSettings, with_training: bool) -> ImageData:
    """The digits, values 0…16 scaled to 0…255; one fifth of each class, always the same, is the test set.

    Coarse classes are the even and the odd digits.
    """
    # Here, because scikit-learn takes a second to import and only this data set needs it.
    from sklearn import datasets

    digits = datasets.load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    train, test = hold_out(Split(images, labels, "digits"), _TEST_FRACTION)
    classes = [str(name) for name in digits.target_names]
    coarse = CoarseClasses(("even", "odd"), torch.arange(10) % 2) if settings.labels == "coarse" else None
    own = Augmentation(crop_padding=1, flip=False)
    return image_data("digits", train if with_training else None, test, classes, own, settings, coarse)
