"""Ways to make batches of image files: `icckd.data.Batches` of a streamed folder, and the usual one, image by image."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.train_input import MEAN, STD
from icckd.bench.measure import Contender
from icckd.data import Augmentation, Batches, load_data
from icckd.settings import DataSettings

STREAMED, BY_IMAGE = "icckd.data.Batches, streamed, 2 workers", "DataLoader, image by image, 2 workers"
DECODING = "floor: decoding files, 2 workers"
WORKERS = 2
AREAS = (0.08, 1.0)


class ImageFiles(Dataset[tuple[Tensor, ...]]):
    """The views of one file, float32 (3, size, size): a random box of it, resized, flipped, scaled and normalised."""

    def __init__(self, paths: list[Path], size: int, views: int):
        self.paths, self.size, self.views = paths, size, views
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        picture = Image.open(self.paths[index]).convert("RGB")
        return tuple(self._view(picture) for _ in range(self.views))

    def _view(self, picture: Image.Image) -> Tensor:
        pixels = np.array(picture.resize((self.size, self.size), Image.Resampling.BILINEAR, box=_box(*picture.size)))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image.float().div_(255).sub_(self.mean).div_(self.std)


def _box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random box, all of the image where ten of them do not fit."""
    for _ in range(10):
        area = width * height * float(torch.empty(()).uniform_(*AREAS))
        ratio = math.exp(float(torch.empty(()).uniform_(math.log(3 / 4), math.log(4 / 3))))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(torch.randint(width - wide + 1, ())), int(torch.randint(height - tall + 1, ()))
            return left, top, left + wide, top + tall
    return 0, 0, width, height


class Decoded(Dataset[int]):
    """Decodes one file, and leaves it at that."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        return Image.open(self.paths[index]).convert("RGB").width


def write_photographs(root: Path, count: int, side: int) -> None:
    """An image-folder of `count` JPEG files of two classes, of about `side` pixels a side, smooth with some noise."""
    random = np.random.default_rng(0)
    for part, images in (("train", count // 2), ("val", 1)):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for number in range(images):
                width, height = random.integers(side * 4 // 5, side * 6 // 5, 2).tolist()
                smooth = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
                pixels = np.array(smooth.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int64)
                noisy = (pixels + random.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(root / part / name / f"{number:04}.jpg", quality=90)


def streamed_contenders(root: Path, size: int, batch: int, views: int, device: torch.device) -> dict[str, Contender]:
    """Who goes through the training images in `root` once a call, by name, in batches of (batch, 3, size, size)."""
    settings = DataSettings(name="image-folder", root=str(root), image_size=size, streaming=True, workers=WORKERS)
    settings.mean, settings.std = list(MEAN), list(STD)
    data = load_data(settings)
    batches = Batches(
        data.train_images,
        data.train_labels,
        batch_size=batch,
        mean=MEAN,
        std=STD,
        augmentation=Augmentation(crop_padding=0, flip=True, resized_crop=AREAS),
        views=views,
        shuffle=True,
        seed=0,
        device=device,
        drop_last=True,
    )
    paths = sorted((root / "train").rglob("*.jpg"))

    def loader(dataset: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=WORKERS,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )

    by_image, decoding = loader(ImageFiles(paths, size, views)), loader(Decoded(paths))
    return {
        STREAMED: _all(batches.epoch),
        BY_IMAGE: _all(lambda k: (x.to(device, non_blocking=True) for tensors in by_image for x in tensors)),
        DECODING: _all(lambda k: decoding),
    }


def _all(make: Callable[[int], Iterable[object]]) -> Contender:
    """Makes all that there is to make, and keeps nothing."""
    return lambda k: deque(make(k), maxlen=0)
