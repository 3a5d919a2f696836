"""Operators under the transforms of torch.func, and under differentiation in forward mode.

`torch.library` gives an operator a formula for ordinary autograd only. Under a transform, or where an input carries a
tangent, `call` takes the operator's `torch.autograd.Function` instead: the same formula, one for forward mode, and a
loop where `vmap` maps it. Everywhere else `call` is the operator, and costs nothing.
"""

import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._library.autograd import make_autograd_impl
from torch.autograd import forward_ad
from torch.library import CustomOpDef

from icckd.compiling import assume_constant_result, disable

_FUNCTIONS: dict[CustomOpDef, type[torch.autograd.Function]] = {}


def refuse_second_derivative(ctx: Any, *_: Tensor | None) -> NoReturn:
    """The formula, in either mode, of what computes a gradient or a tangent."""
    raise RuntimeError("icckd's losses can be differentiated once only; icckd.reference's as often as wanted")


def refuse_forward_mode(ctx: Any, *_: Tensor | None) -> NoReturn:
    """The forward-mode formula of losses of rows that each depend on other rows."""
    raise RuntimeError(
        "icckd's losses of pairs have no derivative in forward mode with reduction='none'; "
        "reduction='sum' and 'mean' have one, and so have icckd.reference's"
    )


def register(
    operator: CustomOpDef,
    backward: Callable,
    setup_context: Callable | None = None,
    jvp: Callable = refuse_second_derivative,
) -> None:
    """Give `operator` its formulas: those of torch.autograd.Function, by which also torch.library takes them."""
    operator.register_autograd(backward, setup_context=setup_context)
    _guard(operator)

    def set_up(ctx: Any, inputs: tuple, output: Any) -> None:
        if setup_context is not None:
            setup_context(ctx, inputs, output)
            ctx.save_for_forward(*ctx.to_save)

    def one_by_one(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise RuntimeError("icckd's operators cannot be mapped by torch.vmap over a dimension of size 0")
        outputs = [
            call(operator, *(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        return tuple(map(torch.stack, zip(*outputs, strict=True))), (0,) * len(outputs[0])

    formulas: dict[str, Any] = {"forward": operator, "setup_context": set_up, "backward": backward, "jvp": jvp}
    members = {name: staticmethod(formula) for name, formula in (formulas | {"vmap": one_by_one}).items()}
    _FUNCTIONS[operator] = type(operator._name, (torch.autograd.Function,), members)


def _guard(operator: CustomOpDef) -> None:
    """Let the operator itself refuse what `call` would have served, lest PyTorch answer 0.

    Graphs that were compiled, exported or recorded hold operators, not their calls.
    """
    ordinary = make_autograd_impl(operator._opoverload, operator)

    def autograd(keyset: Any, *inputs: Any) -> Any:
        if _carries_tangent(inputs) or _transforms():
            raise RuntimeError(
                "a compiled or recorded graph that holds icckd's operators cannot be transformed by torch.func or "
                "differentiated in forward mode; transform the losses themselves"
            )
        return ordinary(keyset, *inputs)

    with warnings.catch_warnings():
        # That there was a kernel before is what is wanted.
        warnings.simplefilter("ignore")
        operator._lib.impl(operator._name, autograd, "Autograd", with_keyset=True, allow_override=True)


def call(operator: CustomOpDef, *inputs: Any) -> Any:
    """The operator's result, whatever is differentiating or mapping it."""
    return _FUNCTIONS[operator].apply(*inputs) if transformed(*inputs) else operator(*inputs)


def transformed(*inputs: Any) -> bool:
    """Whether a transform of torch.func is under way, or an input carries a tangent."""
    if not torch.compiler.is_compiling():
        return bool(_transforms()) or _carries_tangent(inputs)
    if _differentiating():
        raise RuntimeError(
            "icckd's losses cannot be compiled within torch.func's grad, vjp or jvp with fullgraph=True; "
            "without it, they run uncompiled there"
        )
    return False


@assume_constant_result
def _differentiating() -> bool:
    """Whether torch.func is taking a derivative."""
    return TransformType.Grad in _transforms() or TransformType.Jvp in _transforms()


def _carries_tangent(inputs: tuple) -> bool:
    return forward_ad._current_level >= 0 and any(
        isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in inputs
    )


@assume_constant_result
def mapped() -> bool:
    """Whether torch.vmap is under way."""
    return TransformType.Vmap in _transforms()


def _transforms() -> list[TransformType]:
    """The transforms of torch.func that are under way; not functionalize alone, which serves operators."""
    # As a rule there is none, and every call of a loss asks several times.
    return [] if torch._C._functorch.peek_interpreter_stack() is None else _stack()


@disable
def _stack() -> list[TransformType]:
    keys = [x.key() for x in torch._C._functorch.get_interpreter_stack() or ()]
    others: list[TransformType] = [key for key in keys if key != TransformType.Functionalize]
    if others and len(others) < len(keys):
        raise RuntimeError("icckd's losses take no other transform of torch.func together with functionalize")
    return others


def wants_gradient(x: Tensor) -> bool:
    """Whether a gradient of `x` is best computed together with the loss.

    What transforms want cannot be asked. A trace of torch.jit serves inputs with and without gradient: it should hold
    the operators of rows, which compute one when it is wanted.
    """
    if torch.jit.is_tracing():
        return False
    return transformed(x) or (x.requires_grad and torch.is_grad_enabled()) or mapped()


def differentiable(*inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs, in single precision where one is transformed and they have less.

    A derivative that is at hand before the upstream gradient's factor, or its tangent, could underflow in float16.
    """
    if not transformed(*inputs):
        return inputs
    return tuple(x.to(torch.promote_types(x.dtype, torch.float32)) for x in inputs)


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Save tensors for backward; those made under torch.inference_mode(), which PyTorch refuses to save, as copies."""
    ctx.save_for_backward(*(x.clone() if x is not None and x.is_inference() else x for x in tensors))
