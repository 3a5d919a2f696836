"""The file that a training resumes from: tensors and plain types only, replaced whole, read without unpickling code."""

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from icckd.distributed import ALONE, World
from icckd.errors import UserError
from icckd.files import write_whole


class Checkpoint:
    """One training's state on disk, `folder`/state.pt; the previous state stays until the new one is safely written.

    Of several processes the first reads and writes, and all call together: there is one file, as of one process.
    """

    def __init__(self, folder: Path, world: World = ALONE):
        self.path = folder / "state.pt"
        self._world = world

    def exists(self) -> bool:
        return self._world.from_first(self.path.exists)

    def save(self, state: dict[str, Any]) -> None:
        """Write `state`, made of dicts, lists, strings, numbers and tensors."""
        if self._world.first:
            write_whole(self.path, lambda temporary: torch.save(state, temporary))

    def load(self) -> dict[str, Any]:
        """The state last saved, tensors on the CPU. Raises UserError where the file is not one, runs nothing in it."""
        source = self.path if self._world.size == 1 else io.BytesIO(self._world.bytes_from_first(self.path.read_bytes))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.load warns of what is an error here anyway
                state = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises a dozen types for broken and for hostile files
            reason = str(error).strip().split("\n")[0][:120]
            raise UserError(
                f"{self.path} is not a checkpoint of this tool ({type(error).__name__}: {reason})"
            ) from error
        if not isinstance(state, dict):
            raise UserError(f"{self.path} is not a checkpoint of this tool (it holds a {type(state).__name__})")
        return state
