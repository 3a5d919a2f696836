"""The file that a training resumes from: tensors and plain types only, replaced whole, read without unpickling code."""

import warnings
from pathlib import Path
from typing import Any

import torch

from icckd.errors import UserError
from icckd.files import write_whole


class Checkpoint:
    """One training's state on disk, `folder`/state.pt; the previous state stays until the new one is safely written."""

    def __init__(self, folder: Path):
        self.path = folder / "state.pt"

    def exists(self) -> bool:
        return self.path.exists()

    def save(self, state: dict[str, Any]) -> None:
        """Write `state`, made of dicts, lists, strings, numbers and tensors."""
        write_whole(self.path, lambda temporary: torch.save(state, temporary))

    def load(self) -> dict[str, Any]:
        """The state last saved, tensors on the CPU. Raises UserError where the file is not one, runs nothing in it."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch.load warns of what is an error here anyway
                state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises a dozen types for broken and for hostile files
            reason = str(error).strip().split("\n")[0][:120]
            raise UserError(
                f"{self.path} is not a checkpoint of this tool ({type(error).__name__}: {reason})"
            ) from error
        if not isinstance(state, dict):
            raise UserError(f"{self.path} is not a checkpoint of this tool (it holds a {type(state).__name__})")
        return state
