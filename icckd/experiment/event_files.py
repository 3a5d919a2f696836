"""A training's numbers for TensorBoard, in event files beside metrics.jsonl."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from icckd.errors import UserError, reason
from icckd.settings import Settings


class EventFiles:
    """Those of one stage, in `folder`, which holds nothing else.

    They are made anew from the history that a training begins or goes on with, so that an epoch never stands in them
    twice, and what a killed process has left of them does not matter. Nothing random is drawn.
    """

    def __init__(self, folder: Path, settings: Settings):
        self.folder = folder
        self.settings = settings
        self._writer: Any = None
        self._written = 0

    def write(self, history: Sequence[dict[str, Any]]) -> None:
        """Add the epochs of `history`, a record each, that are not there yet: every number by name, at its epoch.

        The first time, the settings too, as text. All of it is on the disk then.
        """
        if self._writer is None:
            self._writer = self._begin()
        for record in history[self._written :]:
            for name, value in record.items():
                if name != "epoch" and isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, record["epoch"])
        self._written = len(history)
        self._writer.flush()

    def close(self) -> None:
        """No more epochs will come."""
        if self._writer is not None:
            self._writer.close()

    def _begin(self) -> Any:
        shutil.rmtree(self.folder, ignore_errors=True)
        writer = summary_writer()(str(self.folder))
        settings = yaml.safe_dump(asdict(self.settings), sort_keys=False, allow_unicode=True)
        # Markdown, in which an indented line is shown as it is.
        writer.add_text("settings", "".join(f"    {line}\n" for line in settings.splitlines()))
        return writer


def summary_writer() -> Any:
    """PyTorch's class that writes event files. Raises UserError where TensorBoard cannot be imported."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:  # Of any kind, as a TypeError where protobuf is none that it was made for.
        raise UserError(
            f"--tensorboard is given, but TensorBoard cannot be imported ({reason(error)}): "
            "pip install 'icckd[tensorboard]'"
        ) from error
    return SummaryWriter
