"""Tensors of which every rank has a part (DTensor, as FSDP2's parameters are): the part, and the whole.

Those that are no such tensors are their own only part. Nothing of torch.distributed is loaded for them.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def _is_in_parts(tensor: Tensor | None) -> bool:
    return hasattr(tensor, "to_local")


def own_part(tensor: Any) -> Tensor:
    """What this rank has of `tensor`, in the same memory."""
    return tensor.detach().to_local() if _is_in_parts(tensor) else tensor


def own_gradient(parameter: Tensor) -> Tensor | None:
    """What this rank has of the parameter's gradient."""
    gradient: Any = parameter.grad
    return gradient.to_local() if _is_in_parts(gradient) else gradient


def whole(part: Tensor, like: Any) -> Tensor:
    """All of what this rank has a `part` of, where `like` is in parts in the same way. All ranks call it together."""
    if not _is_in_parts(like):
        return part
    from torch.distributed.tensor import DTensor

    shape, stride = like.shape, like.stride()
    return DTensor.from_local(part, like.device_mesh, like.placements, shape=shape, stride=stride).full_tensor()


def part_of(tensor: Tensor, like: Any) -> Tensor:
    """This rank's part of all of a `tensor`, where `like` is in parts; nothing is exchanged."""
    if not _is_in_parts(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = tensor.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None).to_local()


def whole_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of `module`, whole on every rank. All ranks call it together."""
    return {name: x.full_tensor() if _is_in_parts(x) else x for name, x in module.state_dict().items()}


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state dict of `module`, by PyTorch's distributed checkpointing where it is in parts: the first rank gets it.

    All ranks call it together.
    """
    if not any(_is_in_parts(x) for x in module.parameters()):
        return module.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_whole_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Take a state dict of the whole, of which each rank has all and keeps its part. Raises as load_state_dict does."""
    if not any(_is_in_parts(x) for x in module.parameters()):
        module.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(module, dict(state), options=StateDictOptions(full_state_dict=True))
