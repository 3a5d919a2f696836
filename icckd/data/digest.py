"""What tells a data set from every other: a digest of each of its parts."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from icckd.data.image_data import ImageData
from icckd.data.streaming import ImageFiles

_CHUNK = 1 << 24


def digests(data: ImageData) -> dict[str, str]:
    """For images and labels of both splits and for the class names: shape or count, and SHA-256.

    For candidate and fine labels and for people too, where there are any. Of images in files names and sizes are what
    counts; of those that were not to be looked at there is no digest. Reads memory at the speed of one hash per
    processor: 3 GB of images take a second or two.
    """
    splits = ("train", "test") if len(data.train_labels) else ("test",)
    parts = {f"{split}_{kind}": getattr(data, f"{split}_{kind}") for split in splits for kind in ("images", "labels")}
    if data.candidates is not None:
        parts["candidates"] = data.candidates
    if data.fine_labels is not None:
        parts |= {f"fine_labels.{name}": of for name, of in data.fine_labels._asdict().items() if len(of)}
    names = {"classes": data.classes}
    if data.people is not None:
        parts |= {"people.train": data.people.train, "people.test": data.people.test}
        names["people"] = data.people.names
    return {
        **{f"data.{name}": _digest(part) for name, part in parts.items()},
        **{f"data.{name}": _digest_of_names(texts) for name, texts in names.items()},
    }


def _digest_of_names(names: Sequence[str]) -> str:
    return f"{len(names)}, sha256 {hashlib.sha256(json.dumps(names).encode()).hexdigest()}"


def _digest(part: Tensor | ImageFiles) -> str:
    whole = _digest_of(part) if isinstance(part, Tensor) else f"of names and sizes {part.digest()}"
    return f"{'×'.join(map(str, part.shape))}, sha256 {whole}"


def _digest_of(tensor: Tensor) -> str:
    """The SHA-256 of the SHA-256s of consecutive chunks, which threads compute side by side."""
    content = tensor.contiguous().numpy().data.cast("B")
    chunks = (content[start : start + _CHUNK] for start in range(0, len(content), _CHUNK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda chunk: hashlib.sha256(chunk).digest(), chunks)
        return hashlib.sha256(b"".join(parts)).hexdigest()
