"""Files are written whole or not at all: to a temporary name beside the target, synced, then renamed."""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Make `path` by calling `write(temporary)`; a crash at any moment leaves the old file or the new one.

    Raises OSError as the file system does, also where what writes says it in its own way; the temporary file is then
    removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machines that share a folder may have processes of one number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # The temporary name tells nobody anything.
    except Exception as error:
        # So do torch.save and safetensors, which is not loaded for that, say that a disk is full.
        if not isinstance(error, RuntimeError) and type(error).__name__ != "SafetensorError":
            raise
        raise OSError(f"{path} cannot be written; is the disk full? ({' '.join(str(error).split())[:120]})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`path` with `text` in UTF-8, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`path` with `value` as indented JSON, whole or not at all; non-finite numbers become null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def json_line(value: Any) -> str:
    """`value` as one line of JSON; non-finite numbers become null, which JSON has no other word for."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def is_utf8(name: str) -> bool:
    """Whether a name from the file system or the command line can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
