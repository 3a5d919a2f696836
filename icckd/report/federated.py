"""Federated learning: who had how many images, what was sent, and which classes were found to be confused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icckd.errors import UserError
from icckd.report.reading import mapping, number, one_line
from icckd.report.shell import paragraphs
from icckd.report.tables import section_text

_HEADING = "Clients, and what they sent"


@dataclass(frozen=True)
class Federation:
    """What a summary tells of a student's clients.

    `weak` and `groups` are names of classes; None where clients were not asked.
    """

    images: list[int]
    bytes_by_round: list[int]
    warmup_rounds: int
    weak: list[str] | None
    groups: list[list[str]] | None


def read_federation(summary: dict[str, Any], path: Path) -> Federation | None:
    """What the summary in `path` tells of it; None: nothing. Raises UserError where that is broken."""
    student = mapping(summary.get("student") or {}, path, "student")
    if "federated" not in student:
        return None
    found = mapping(student["federated"], path, "student.federated")
    images, by_round = (_counts(found.get(name)) for name in ("images_by_client", "bytes_by_round"))
    warmup, groups = _counts([found.get("warmup_rounds")]), found.get("groups")
    if not images or not by_round or not warmup or not isinstance(groups, list | None):
        raise UserError(f"{path}: student.federated should have images_by_client, bytes_by_round and warmup_rounds")
    of_groups = None if groups is None else [_names(group) or [] for group in groups]
    return Federation(images, by_round, warmup[0], _names(found.get("weak_classes")), of_groups)


def sentences(federation: Federation) -> list[str]:
    """What there is to say of it."""
    images, by_round = federation.images, federation.bytes_by_round
    return [
        f"{len(images)} clients with {min(images):,} to {max(images):,} training images each trained in "
        f"{len(by_round)} rounds. Networks and counts of confused classes took {_megabytes(sum(by_round))} on their "
        f"way to them and back: {_megabytes(by_round[0])} in the first round, {_megabytes(max(by_round))} at most, "
        f"{_megabytes(by_round[-1])} in the last.",
        _confused(federation),
    ]


def federated_section(federation: Federation | None) -> str:
    """The section as HTML, empty where there were no clients."""
    if federation is None:
        return ""
    return f"<section><h2>{_HEADING}</h2>\n{paragraphs(sentences(federation))}</section>"


def federated_text(federation: Federation | None) -> str:
    """The section as Markdown, empty likewise."""
    return section_text(_HEADING, sentences(federation)) if federation else ""


def _confused(federation: Federation) -> str:
    if federation.weak is None or federation.groups is None:
        return "All rounds were federated averaging alone: nobody was asked which classes are confused."
    after = f"After {federation.warmup_rounds} of the rounds"
    if not federation.weak:
        return f"{after} no class was weak, so there was no expert to learn from."
    weak = f"{after} these classes were weak: {', '.join(federation.weak)}."
    if not federation.groups:
        return f"{weak} None of them and another were confused with each other, so there was no expert to learn from."
    groups = "; ".join(" with ".join(group) for group in federation.groups)
    return f"{weak} An expert was trained for each group of classes confused with each other: {groups}."


def _counts(values: Any) -> list[int]:
    """Whole numbers, 0 or more; none where there is something else among them."""
    numbers = [number(value) for value in values] if isinstance(values, list) else []
    return [int(x) for x in numbers if x is not None] if all(x is not None and x >= 0 for x in numbers) else []


def _names(values: Any) -> list[str] | None:
    return [one_line(value) for value in values] if isinstance(values, list) else None


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.3g} MB"
