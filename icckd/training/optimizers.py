"""The optimisers, so wrapped that a GPU can leave a step out by itself.

Stochastic gradient descent is PyTorch's. Those for large batches, whose steps are in proportion to the norm of each
weight tensor, are pytorch_optimizer's (Kim, github.com/kozistr/pytorch_optimizer), the extra `large-batch`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from icckd.distributed.parts import own_gradient, own_part, part_of, whole
from icckd.errors import UserError, reason
from icckd.settings import TrainingSettings


class Optimizer(ABC):
    """Makes the updates of a module's parameters. Nothing here waits for a GPU."""

    def __init__(self, optimizer: torch.optim.Optimizer, buffers: tuple[str, ...]):
        self._optimizer = optimizer
        self._buffers = buffers
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # Those of a first step that is left out have to be there, and zero.
        for parameter in self._parameters:
            optimizer.state[parameter] = {name: torch.zeros_like(parameter) for name in buffers}

    def zero_grad(self) -> None:
        """Forget the gradients of the step before."""
        self._optimizer.zero_grad()

    @abstractmethod
    def set_rate(self, rate: float) -> None:
        """The learning rate of the steps that follow."""

    @abstractmethod
    def step(self, taken: Tensor) -> None:
        """Update by the gradients, if `taken`, 0-dim bool; else parameters and state keep their bits."""

    def state_dict(self) -> dict[str, Any]:
        """All of its state, whole on every rank."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state)


class GradientDescent(Optimizer):
    """PyTorch's fused SGD, which takes its learning rate, and whether it is to update, from tensors on the device.

    So its steps can be part of a CUDA graph. Of parameters that are in parts it knows this rank's.
    """

    def __init__(self, module: nn.Module, settings: TrainingSettings):
        groups = _parameter_groups(module, settings.weight_decay, settings.decay_all)
        self._whole = [p for group in groups for p in group["params"]]
        parts = [{**group, "params": [own_part(p) for p in group["params"]]} for group in groups]
        momentum, nesterov = settings.momentum, settings.nesterov
        sgd = torch.optim.SGD(parts, lr=settings.learning_rate, momentum=momentum, nesterov=nesterov, fused=True)
        super().__init__(sgd, ("momentum_buffer",))
        self._rate = torch.tensor(settings.learning_rate, device=self._parameters[0].device)
        self._use_rate()

    def set_rate(self, rate: float) -> None:
        self._rate.fill_(rate)

    def zero_grad(self) -> None:
        for parameter in self._whole:
            parameter.grad = None

    def step(self, taken: Tensor) -> None:
        for parameter, part in zip(self._whole, self._parameters, strict=True):
            part.grad = own_gradient(parameter)
        # As `torch.amp.GradScaler` tells a fused optimiser.
        self._optimizer.found_inf = taken.logical_not().float()  # type: ignore[attr-defined]
        self._optimizer.grad_scale = None  # type: ignore[attr-defined]
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return self._each_buffer(super().state_dict(), whole)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(self._each_buffer(state, _laid_out_as))
        self._use_rate()

    def _each_buffer(self, state: dict[str, Any], change: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
        """`state` with `change(buffer, parameter)` for each buffer."""
        numbered = enumerate(self._whole)
        buffers = {n: {name: change(x, p) for name, x in state["state"][n].items()} for n, p in numbered}
        return {**state, "state": buffers}

    def _use_rate(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate


class LayerWise(Optimizer):
    """LARS or LAMB, as `settings` say, which know of no step to leave out: what one changes is copied, and put back.

    That takes as much memory again as parameters and state, for the time of a step.

    LARS (You et al. 2017, arXiv 1708.03888): the gradient of a weight tensor w, with its decay, times
    .001 ‖w‖ / (‖gradient‖ + weight_decay ‖w‖), then momentum; other parameters, of one axis or none, as by SGD without
    decay. LAMB (You et al. 2020, arXiv 1904.00962) as in its first author's code for ResNet-50
    (github.com/fastalgo/imagenet_resnet50_lamb), hence some settings below that are not the library's defaults: Adam's
    step without bias correction from gradients clipped to norm 1 together, plus weight_decay · w, times ‖w‖ over the
    norm of that; other parameters by Adam's step alone.
    """

    def __init__(self, module: nn.Module, settings: TrainingSettings):
        library = layer_wise_library("optimizer", settings.optimizer)
        weights, others = _parameter_groups(module, settings.weight_decay, settings.decay_all)
        if settings.optimizer == "lars":
            optimizer = library.LARS([weights, others], momentum=settings.momentum, nesterov=settings.nesterov)
            buffers: tuple[str, ...] = ("momentum_buffer",)
        else:
            optimizer = library.Lamb(
                [weights, others | {"adam": True}], weight_decouple=False, adam_debias=True, pre_norm=True
            )
            optimizer.clamp = math.inf
            buffers = ("exp_avg", "exp_avg_sq")
        super().__init__(optimizer, buffers)
        self.set_rate(settings.learning_rate)

    def set_rate(self, rate: float) -> None:
        # A number: the library would read a tensor back.
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def step(self, taken: Tensor) -> None:
        before = [tensor.detach().clone() for tensor in self._changing()]
        self._optimizer.step()
        self._forget_notes()
        for tensor, old in zip(self._changing(), before, strict=True):
            torch.where(taken, tensor.detach(), old, out=tensor.detach())

    def _changing(self) -> list[Tensor]:
        state = self._optimizer.state
        return [*self._parameters, *(state[p][name] for p in self._parameters for name in self._buffers)]

    def _forget_notes(self) -> None:
        """Drop what the library writes down besides and never uses: it would tell of steps that were left out."""
        for group in self._optimizer.param_groups:
            del group["step"]
        for parameter in self._parameters:
            state = self._optimizer.state[parameter]
            self._optimizer.state[parameter] = {name: state[name] for name in self._buffers}


def _laid_out_as(buffer: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a buffer, its numbers in memory in the parameter's order: the fused update goes by that."""
    return torch.empty_like(own_part(parameter)).copy_(part_of(buffer, parameter))


def make_optimizer(module: nn.Module, settings: TrainingSettings) -> Optimizer:
    """The optimiser of `module`'s parameters that `settings` name."""
    return GradientDescent(module, settings) if settings.optimizer == "sgd" else LayerWise(module, settings)


def layer_wise_library(setting: str, optimizer: str) -> ModuleType:
    """The module pytorch_optimizer. Raises UserError, naming the `setting` whose value needs it, where it is not."""
    try:
        import pytorch_optimizer
    except Exception as error:  # Of any kind: it, or a part of it, may be of another version than this PyTorch.
        raise UserError(
            f"{setting} is {optimizer}, which needs pytorch_optimizer, and that cannot be imported ({reason(error)}): "
            "pip install 'icckd[large-batch]'"
        ) from error
    return pytorch_optimizer


def _parameter_groups(module: nn.Module, weight_decay: float, decay_all: bool) -> list[dict[str, Any]]:
    """Parameters for an optimiser: weights decay; biases and normalisation parameters, of one axis or none, may too."""
    weights = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": weight_decay if decay_all else 0.0},
    ]
