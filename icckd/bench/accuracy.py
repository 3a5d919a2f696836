"""Results beside float64: the relative error of each output and gradient, and who is too far off to be timed.

An error is ‖computed − exact‖ / ‖exact‖; what is exact is what the `reference` backend computes in float64.
"""

import torch
from torch import Tensor

from icckd.bench.case import Case, Contender, release, step, widened, with_leaves
from icckd.bench.measure import Clock

# An error above this is another loss: low precision alone stays below it.
WRONG = {"bfloat16": 0.1, "float16": 0.03, "float32": 1e-3}


def exact_results(case: Case, device: torch.device) -> dict[str, Tensor]:
    """What the `reference` backend gives in float64, by the name of the output or gradient."""
    x = with_leaves(case, widened(case.inputs(0, device)))
    return _named(case, step(case, case.ours("reference"), x))


def errors(case: Case, contender: Contender, device: torch.device, exact: dict[str, Tensor]) -> dict[str, float]:
    """The relative error of each output and gradient that the contender returns, on fresh inputs."""
    x = with_leaves(case, case.inputs(0, device))
    return {
        name: _relative(value, exact[name]) for name, value in _named(case, step(case, contender.function, x)).items()
    }


def _named(case: Case, results: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Results by name: those of `outputs`, of which contenders may leave out the later ones, then the gradients."""
    count = len(results) - len(case.differentiated)
    names = [*case.outputs[:count], *(f"gradient of {name}" for name in case.differentiated)]
    return dict(zip(names, (result.detach() for result in results), strict=True))


def _relative(computed: Tensor, exact: Tensor) -> float:
    difference = (computed.double() - exact.double()).norm()
    return (difference / exact.double().norm().clamp(min=torch.finfo(torch.float64).tiny)).item()


def screen(
    case: Case, contender: Contender, device: torch.device, timer: Clock, exact: dict[str, Tensor]
) -> tuple[str | None, float | None]:
    """Why a contender is not timed, None if it is; its largest error."""
    if contender.why_not:
        return contender.why_not, None
    try:
        if not contender.checked:
            step(case, contender.function, with_leaves(case, case.inputs(0, device)))
            return None, None
        error = max(errors(case, contender, device, exact).values(), key=_badness)
    # Whatever goes wrong in one contender is its result.
    except Exception as failure:
        if not timer.is_usable():
            raise
        return f"{type(failure).__name__}: {str(failure).strip()[:300]}", None
    finally:
        release(device)
    return (None if error <= WRONG[case.dtype] else f"wrong: off by {error:.1e}"), error


def _badness(error: float) -> float:
    return error if error == error else float("inf")
