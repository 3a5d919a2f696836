"""Images in files, which stand where a tensor of them would."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from icckd.console import console, say
from icckd.data.augmentation import NOTHING, Drawn
from icckd.data.streaming.decoders import Decoders
from icckd.data.streaming.pictures import Request, decode
from icckd.errors import UserError

# Images that are decoded by one process and sent as one tensor.
_PIECE = 64
_CHUNK = 4096


class ImageFiles:
    """N colour images that are decoded as they are asked for: seen from outside uint8 (N, 3, size, size).

    Args:
        paths: Their files, all beneath `folder`.
        folder: Where they are; what it is called plays no part in their digest.
        size: Pixels a side that they are centre-cropped and resized to.
        decoders: Who decodes them.
    """

    dtype = torch.uint8
    ndim = 4

    def __init__(self, paths: Sequence[Path], folder: Path, size: int, decoders: Decoders):
        # Text: a path takes a kilobyte.
        self._names = [str(path)[len(str(folder)) :] for path in paths]
        self._folder = str(folder)
        self._size = size
        self._decoders = decoders

    def __len__(self) -> int:
        return len(self._names)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self._size, self._size))

    def __getitem__(self, places: Tensor) -> Tensor:
        """A few of the images, decoded here and now: uint8 (B, 3, size, size)."""
        return decode(self._request(places.numpy(), NOTHING))[0]

    def part(self, places: np.ndarray) -> "ImageFiles":
        """The images at `places` alone, in that order."""
        part = ImageFiles((), Path(self._folder), self._size, self._decoders)
        part._names = [self._names[place] for place in places.tolist()]
        return part

    def decoded(self, wanted: Iterable[tuple[np.ndarray, Drawn]], device: torch.device) -> Iterator[Tensor]:
        """The images at the places (B,) that are wanted, on `device`: decoded ahead, and `wanted` is asked ahead.

        Without boxes drawn they are uint8 (B, 3, size, size). With boxes they are V views of each, mirrored and cut as
        is drawn: (V · B, 3, size, size), the first view of every image, then the second. Raises UserError where an
        image cannot be decoded.
        """
        pieces: deque[int] = deque()

        def requests() -> Iterator[Request]:
            for places, drawn in wanted:
                starts = range(0, max(len(places), 1), _PIECE)
                pieces.append(len(starts))
                for piece in (slice(start, start + _PIECE) for start in starts):
                    yield self._request(places[piece], drawn.part(piece))

        answers = self._decoders.run(requests(), pin_memory=device.type == "cuda")
        for answer in answers:
            parts = [answer, *islice(answers, pieces.popleft() - 1)]
            yield torch.cat([part.to(device, non_blocking=True) for part in parts], dim=1).flatten(0, 1)

    def _request(self, places: np.ndarray, drawn: Drawn) -> Request:
        return Request([self._folder + self._names[place] for place in places.tolist()], self._size, drawn)

    def sample(self, most: int, title: str) -> Iterator[Tensor]:
        """`most` of the images at most, spread evenly, in parts, with progress on standard error under `title`."""
        count = min(most, len(self))
        places = np.arange(count) * len(self) // count
        starts = range(0, count, _PIECE)
        if not console.is_terminal:
            say(f"{title}: decoding {count} of {len(self)} images for their mean and deviation")
        parts = self.decoded(((places[start : start + _PIECE], NOTHING) for start in starts), torch.device("cpu"))
        yield from track(
            parts, title, total=len(starts), console=console, transient=True, disable=not console.is_terminal
        )

    def digest(self) -> str:
        """A SHA-256 of all names within the folder and the files' sizes, not of what they hold, in hexadecimal.

        Raises UserError where a file is not there.
        """
        starts = range(0, len(self), _CHUNK)
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                parts = pool.map(lambda start: self._digest_of(self._names[start : start + _CHUNK]), starts)
                return hashlib.sha256(b"".join(parts)).hexdigest()
        except OSError as error:
            raise UserError(f"data.root: {error.filename}: {error.strerror}") from error

    def _digest_of(self, names: Iterable[str]) -> bytes:
        lines = (b"%s\0%d\0" % (os.fsencode(name), os.stat(self._folder + name).st_size) for name in names)
        return hashlib.sha256(b"".join(lines)).digest()
