"""Every backend against float64: the error of each output and gradient, beside that of PyTorch in the same precision.

An error is ‖computed − exact‖ / ‖exact‖. A backend passes where it is at most twice that of the `reference` backend in
the same dtype, or rounding: of the results, and in float32 of similarities that are divided by a temperature.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench import measure
from bench.gpu.case import Case, Contender, step, widened, with_leaves
from bench.measure import Row

_ALLOWED = 2


def check_case(
    case: Case, contenders: list[Contender], device: torch.device, mark: Callable[[str | None], None]
) -> Iterator[list[Row]]:
    """Rows for each of the contenders, one for each of its outputs and gradients; `mark` is told who is in hand."""
    exact = exact_results(case, device)
    plain_errors, allowed_errors = errors_of_reference(case, device, exact)
    for contender in contenders:
        mark(contender.name)
        common = {
            "stage": "accuracy",
            "family": case.family,
            "case": case.name,
            **case.sizes,
            "dtype": case.dtype,
            "contender": contender.name,
            **measure.conditions(device),
        }
        if contender.why_not:
            yield [{**common, "passed": None, "why": contender.why_not}]
            continue
        try:
            computed = errors(case, contender, device, exact)
        # Whatever goes wrong in one backend is its result.
        except Exception as error:
            print(f"    {contender.name:<34}{case.name}: {_first_line(error)}", flush=True)
            yield [{**common, "passed": False, "why": _first_line(error)}]
            if not measure.clock(device).is_usable():
                raise
            continue
        rows = []
        for quantity, error in computed.items():
            allowed = allowed_errors[quantity]
            # Not a number is no pass.
            passed = error <= allowed
            if not passed:
                print(f"    {contender.name:<34}{case.name}: {quantity} off by {error:.1e} > {allowed:.1e}", flush=True)
            row = {
                "quantity": quantity,
                "error": error,
                "error_of_reference": plain_errors[quantity],
                "allowed": allowed,
                "passed": passed,
                "why": None if passed else f"{quantity} is off by {error:.1e}, more than {allowed:.1e}",
            }
            rows.append({**common, **row})
        yield rows


def errors_of_reference(
    case: Case, device: torch.device, exact: dict[str, Tensor]
) -> tuple[dict[str, float], dict[str, float]]:
    """The errors of the `reference` backend in the case's dtype, and those that other backends may have."""
    plain = next(contender for contender in case.contenders(device) if contender.name == "icckd reference")
    rounding = torch.finfo(case.torch_dtype).eps + torch.finfo(torch.float32).eps * case.amplification
    computed = errors(case, plain, device, exact)
    return computed, {quantity: max(_ALLOWED * error, rounding) for quantity, error in computed.items()}


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


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
