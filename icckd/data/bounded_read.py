"""Reading files that may be hostile: never more than was asked for, whatever a compressed stream would expand to."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from icckd.errors import UserError

_CHUNK = 1 << 20


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """The file at `path` as a stream, decompressed if its name ends in .gz; UserError once it proves damaged."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield cast(BinaryIO, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}); fetch it again") from error


def read_at_most(stream: BinaryIO, limit: int) -> bytearray:
    """Up to `limit` bytes from `stream`, allocated as they come."""
    data = bytearray()
    while len(data) < limit and (chunk := stream.read(min(_CHUNK, limit - len(data)))):
        data += chunk
    return data


def read_file(path: Path, limit: int) -> bytearray:
    """All that `open_file` gives; UserError if that is more than `limit` bytes."""
    with open_file(path) as stream:
        data = read_at_most(stream, limit + 1)
    if len(data) > limit:
        raise UserError(f"{path} holds more than {limit} bytes, too many for a file of this data set")
    return data
