"""PNG and TIFF files that Pillow reads but does not write, byte by byte."""

import struct
import zlib

import numpy as np

# PNG's colour types by number of channels.
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
# First column, first row and steps of the seven passes of an interlaced PNG.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(values, transparent=None, interlaced=False):
    """A PNG of uint8 or uint16 (H, W, channels) values; `transparent`: the value per channel that counts as so."""
    height, width, channels = values.shape
    passes = [values[y::down, x::right] for x, y, right, down in _PASSES] if interlaced else [values]
    rows = [row for part in passes if part.size for row in part.astype(f">u{values.itemsize}")]
    header = struct.pack(">IIBB3B", width, height, 8 * values.itemsize, _COLOUR_TYPES[channels], 0, 0, interlaced)
    chunks = [(b"IHDR", header)]
    if transparent is not None:
        chunks.append((b"tRNS", struct.pack(f">{channels}H", *transparent)))
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def tiff(values, order="<", **tags):
    """A TIFF of (H, W, channels) values in one strip, `order` < or >; `tags` take the place of, or add to, its own.

    compression=8 deflates the strip; planar=2 stores the channels one after the other, each in a strip.
    """
    height, width, channels = values.shape
    planes = np.moveaxis(values, -1, 0) if tags.get("planar") == 2 else values[None]
    strips = [plane.astype(values.dtype.newbyteorder(order)).tobytes() for plane in planes]
    if tags.get("compression") == 8:
        strips = [zlib.compress(strip) for strip in strips]
    content = b"".join(strips)
    content += b"\0" * (len(content) % 2)
    starts = np.cumsum([8, *map(len, strips[:-1])]).tolist()
    entries = {
        256: width,
        257: height,
        258: [8 * values.itemsize] * channels,
        259: tags.get("compression", 1),
        262: tags.get("photometric", 2 if channels > 2 else 1),
        273: starts,
        274: tags.get("orientation", 1),
        277: channels,
        278: height,
        279: [len(strip) for strip in strips],
        284: tags.get("planar", 1),
        338: tags.get("extra", 2 if channels in (2, 4) else None),
        339: [{"u": 1, "i": 2, "f": 3}[values.dtype.kind]] * channels,
    }
    entries = {
        tag: value if isinstance(value, list) else [value] for tag, value in entries.items() if value is not None
    }
    directory, beyond = struct.pack(order + "H", len(entries)), b""
    after = 8 + len(content) + 2 + 12 * len(entries) + 4
    for tag, value in entries.items():
        data = struct.pack(f"{order}{len(value)}I", *value)
        if len(data) > 4:
            data, beyond = struct.pack(order + "I", after + len(beyond)), beyond + data
        directory += struct.pack(order + "HHI", tag, 4, len(value)) + data
    start = struct.pack(order + "HI", 42, 8 + len(content))
    return {"<": b"II", ">": b"MM"}[order] + start + content + directory + bytes(4) + beyond
