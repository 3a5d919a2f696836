"""Every backend against float64: the error of each output and gradient, beside that of PyTorch in the same precision.

An error is ‖computed − exact‖ / ‖exact‖. A backend passes where it is at most twice that of the `reference` backend in
the same dtype, or rounding: of the results, and in float32 of similarities that are divided by a temperature.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from icckd.bench import measure
from icckd.bench.accuracy import errors, exact_results
from icckd.bench.case import Case, Contender
from icckd.bench.measure import Row

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


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
