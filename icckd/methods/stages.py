"""Which stages of both networks a method pairs."""

from collections.abc import Sequence

from icckd.errors import UserError
from icckd.methods.base import Pair, Rule


def one_or_more(stages: Sequence[str] | None) -> Rule:
    """Of a setting that names stages, or is null for the usual ones."""
    return Rule(stages is None or len(set(stages)) == len(stages) > 0, "null, or one or more stages, each once")


def paired_stages(
    method: str,
    pair: Pair,
    student_stages: Sequence[str] | None,
    teacher_stages: Sequence[str] | None,
    *,
    last: bool,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The stages of student and teacher that are paired: those given, else the last ones, as many as both have.

    Without `last`, of those before the very last. Raises UserError, naming the settings of `method`, where a network
    has no such stage, or one of them too few.
    """
    setting, given, usual = f"student.loss.{method.replace('-', '_')}", (student_stages, teacher_stages), []
    for side, network, names in zip(("student", "teacher"), (pair.student, pair.teacher), given, strict=True):
        unknown = [name for name in names or () if name not in network.maps]
        if unknown:
            raise UserError(
                f"{setting}.{side}_stages names {unknown[0]!r}; the {side}'s stages are "
                f"{', '.join(network.maps) or 'none'}"
            )
        usual.append(list(network.maps)[: None if last else -1])
    count = len(given[0] or given[1] or min(usual, key=len))
    own, others = (tuple(names or known[-count:]) for names, known in zip(given, usual, strict=True))
    if count == 0 or not own or not others:
        least = "a stage" if last else "two stages or more"
        raise UserError(f"student.loss.method {method} needs {least} in both networks")
    if len(own) != len(others):
        raise UserError(
            f"{setting} pairs {len(own)} stages of the student, {', '.join(own)}, with {len(others)} of the teacher, "
            f"{', '.join(others)}; name as many of both in student_stages and teacher_stages"
        )
    return own, others
