"""Ways to make a run's batches: `icckd.data.Batches` on the device, and the usual one, image by image in workers."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, RandomSampler

from icckd.bench.measure import Contender
from icckd.data import Augmentation, Batch, Batches
from icckd.data.order import Balance

RESIDENT, LOADER, FLOOR = "icckd.data.Batches", "DataLoader, 2 workers", "floor: uint8 to float32"
BALANCED = "the same, class-balanced"
# Made by one call.
BATCHES = 16
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PADDING = 4
# Of a class in a balanced batch, which has as many classes as there is room for.
SAMPLES = 4


class ImageByImage(Dataset[tuple[Tensor | int, ...]]):
    """The views of one image, float32 (3, H, W), and its label: padded, cropped, flipped, scaled and normalised."""

    def __init__(self, images: Tensor, labels: Tensor, views: int):
        self.images, self.labels, self.views = images, labels.tolist(), views
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor | int, ...]:
        return *(self._view(self.images[index]) for _ in range(self.views)), self.labels[index]

    def _view(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
        image = pad(image, [PADDING] * 4)[:, top : top + height, left : left + width]
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image.float().div_(255).sub_(self.mean).div_(self.std)


def resident(images: Tensor, labels: Tensor, batch: int, views: int, balance: Balance | None = None) -> Batches:
    """Batches of a run's training, made where the images are."""
    return Batches(
        images,
        labels,
        batch_size=batch,
        mean=MEAN,
        std=STD,
        augmentation=Augmentation(crop_padding=PADDING, flip=True),
        views=views,
        shuffle=True,
        seed=0,
        device=images.device,
        drop_last=True,
        balance=balance,
    )


def input_contenders(images: Tensor, labels: Tensor, batch: int, views: int) -> dict[str, Contender]:
    """Who makes `BATCHES` batches a call, by name."""
    device = images.device
    batches = _forever(resident(images, labels, batch, views))
    balanced = _forever(resident(images, labels, batch, views, Balance(batch // SAMPLES, SAMPLES)))
    dataset = ImageByImage(images.cpu(), labels.cpu(), views)
    loader = DataLoader(
        dataset,
        batch,
        # Drawing from all images costs nothing that depends on how many there are.
        sampler=RandomSampler(dataset, replacement=True, num_samples=BATCHES * batch),
        num_workers=2,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    sources = itertools.cycle(images[: len(images) // batch * batch].split(batch))
    target = torch.empty(batch, *images.shape[1:], device=device)

    def load() -> None:
        for tensors in loader:
            for tensor in tensors:
                tensor.to(device, non_blocking=True)

    def convert() -> None:
        for _ in range(BATCHES * views):
            target.copy_(next(sources))

    return {
        RESIDENT: lambda k: [next(batches) for _ in range(BATCHES)],
        BALANCED: lambda k: [next(balanced) for _ in range(BATCHES)],
        LOADER: lambda k: load(),
        FLOOR: lambda k: convert(),
    }


def _forever(batches: Batches) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from batches.epoch(epoch)
