"""What `icckd doctor` says: versions, devices, backends, networks and methods, each available or why not."""

from collections.abc import Iterable
from textwrap import wrap

import torch

from icckd import backends
from icckd.backends import native
from icckd.environment import package_versions, processor, versions
from icckd.methods import METHODS, StudentMethod, StudentProcedure, TeacherMethod
from icckd.models import ARCHITECTURES
from icckd.settings import methods_of


def diagnose() -> str:
    """A report for a person, in lines of text."""
    lines = [f"{name:<14}{version}" for name, version in versions().items()]
    lines += [f"{name:<14}{version or 'not installed'}" for name, version in package_versions().items()]
    lines += [
        "",
        "devices",
        f"  cpu         {processor()}, {torch.get_num_threads()} threads",
        *_cuda_lines(),
    ]
    lines += ["", "backends of the losses"]
    for name in backends.BACKENDS:
        reason = backends.why_unavailable(name)
        lines.append(f"  {name:<12}{_available(name) if reason is None else f'not available: {reason}'}")
    lines += ["", "what backend='auto' takes"]
    for device in ("cpu", "cuda"):
        lines += _automatic_lines(device)
    lines += ["", "networks", *_listed(ARCHITECTURES), *_indented(ARCHITECTURES.problems())]
    lines += ["", "teacher's methods", *_listed(methods_of(TeacherMethod))]
    lines += ["", "student's methods", *_listed((*methods_of(StudentMethod), *methods_of(StudentProcedure)))]
    lines += _indented(METHODS.problems())
    return "\n".join(lines)


def _available(backend: str) -> str:
    details = {
        "cpu": lambda: f", with {native.instruction_set()} instructions",
        "triton": lambda: ", in its interpreter" if backends.module("triton").DEVICE == "cpu" else "",
    }
    return "available" + details.get(backend, lambda: "")()


def _automatic_lines(device: str) -> list[str]:
    """What serves tensors of `device`, and why: a line for each family of operators, or one where they agree."""
    choices = {family: backends.automatic(torch.device(device), torch.float32, family) for family in backends.FAMILIES}
    if len(set(choices.values())) == 1:
        choices = {"": next(iter(choices.values()))}
    return [f"  {f'{device} {family}':<20}{choice.backend}: {choice.reason}" for family, choice in choices.items()]


def _listed(names: Iterable[str]) -> list[str]:
    return wrap(", ".join(names), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _indented(sentences: Iterable[str]) -> list[str]:
    return [f"  {sentence}" for sentence in sentences]


def _cuda_lines() -> list[str]:
    if not torch.cuda.is_available():
        built = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no device found"
        return [f"  cuda        not available: {built}"]
    return [f"  cuda:{i}      {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
