"""Negatives of other classes, drawn on the device from the images of a training set."""

import torch
from torch import Tensor

from icckd.errors import UserError


class NegativeSampler:
    """Draws images of other classes than an image's own, uniformly and with replacement.

    Sorted by class and written down twice, the images of other classes than one are the N − n that follow its n: one
    random number below N − n names one of them. Drawing never waits for the device.

    Args:
        labels: (N,) integers, the class of every training image, on the device where images are to be drawn.

    Raises:
        UserError: There is no image of another class: all labels are the same.
    """

    def __init__(self, labels: Tensor):
        classes, self._class, self._size = labels.unique(return_inverse=True, return_counts=True)
        if len(classes) < 2:
            found = f"all are of class {int(classes[0])}" if len(classes) else "there are none"
            raise UserError(f"negatives of other classes need training images of at least two classes; {found}")
        self._end = self._size.cumsum(0)
        self._order_twice = self._class.argsort(stable=True).repeat(2)

    def draw(
        self,
        images: Tensor,
        count: int,
        generator: torch.Generator | None = None,
        *,
        part: tuple[int, slice] | None = None,
    ) -> Tensor:
        """`count` images of other classes for each of these images, the same for the same state of the generator.

        Remainders of 63 random bits: of N − n images one is likelier than another by less than a part in 2⁶³/N.

        Args:
            images: (B,) int64 indices into the training set.
            count: K, how many each gets.
            generator: Random numbers of the labels' device; None: its default ones.
            part: Of how many images, and where among them, `images` are a part: they get what they would get there.

        Returns:
            (B, K) int64 indices into the training set.
        """
        own = self._class[images]
        end, others = self._end[own][:, None], (len(self._class) - self._size)[own][:, None]
        drawn, own_rows = part or (len(images), slice(None))
        bits = torch.randint(2**63 - 1, (drawn, count), generator=generator, device=self._class.device)[own_rows]
        # In place, as each of these is a large tensor.
        place = bits.remainder_(others).add_(end)
        return self._order_twice.index_select(0, place.reshape(-1)).view_as(place)
