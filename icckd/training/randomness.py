"""PyTorch's random numbers: those of the host and of every GPU."""

from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """Where its generators stand: tensors on the host. Does not wait for a GPU."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to where they stood."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
