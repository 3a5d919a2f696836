"""The optimisers, so wrapped that a GPU can skip an update by itself."""

from typing import Any

import torch
from torch import Tensor, nn

from icckd.settings import TrainingSettings


class Optimizer:
    """Makes the updates of `module`'s parameters as `settings` say. Nothing here waits for a GPU.

    Stochastic gradient descent is PyTorch's fused one, which takes its learning rate, and whether it is to update, from
    tensors on the device: so a step can be captured in a CUDA graph too.
    """

    def __init__(self, module: nn.Module, settings: TrainingSettings):
        self._optimizer = torch.optim.SGD(
            parameter_groups(module, settings.weight_decay, settings.decay_all),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            fused=True,
        )
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        # The buffers of a first step that is skipped would stay as the memory was.
        for parameter in parameters:
            self._optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        self._rate = torch.tensor(settings.learning_rate, device=parameters[0].device)
        self._use_rate()

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()

    def set_rate(self, rate: float) -> None:
        """The learning rate of the steps that follow."""
        self._rate.fill_(rate)

    def step(self, good: Tensor) -> None:
        """Update by the gradients, if `good`, 0-dim bool."""
        # As `torch.amp.GradScaler` tells a fused optimiser.
        self._optimizer.found_inf = good.logical_not().float()  # type: ignore[attr-defined]
        self._optimizer.grad_scale = None  # type: ignore[attr-defined]
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)
        self._use_rate()

    def _use_rate(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate


def parameter_groups(module: nn.Module, weight_decay: float, decay_all: bool) -> list[dict[str, Any]]:
    """Parameters for an optimiser: weights decay; biases and normalisation parameters, of one axis or none, may too."""
    weights = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": weight_decay if decay_all else 0.0},
    ]
