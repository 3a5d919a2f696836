"""Which networks there are: the one place where a family's names lead to the function that builds it."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from icckd.errors import UserError

if TYPE_CHECKING:
    from icckd.models.model import Trunk

# The package whose files are looked through, and the group of entry points that are.
GROUP = "icckd.models"

# From a network's name, the number of its images' channels and their size in pixels to its trunk.
Build = Callable[[str, int, int], "Trunk"]

# Patterns and what they become, each applied once, in order: a tensor's name in another project's state dict becomes
# "classifier.weight" or its place in the trunk: the stage, or stem or head, the layer's number there, and the name in
# the layer, as in "stage2.0.convolution1.0.weight".
Rules = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]


@dataclass(frozen=True)
class Family:
    """How to build networks, and from name and image size the rules to read other projects' state dicts of them."""

    build: Build
    published: Callable[[str, int], Rules] | None = None


class Registry(Collection[str]):
    """The names of all networks, in order; files of this folder and entry points are imported when first asked for.

    A name that ends in a colon stands for all that begin with it: listed as `timm:NAME`, it makes `timm:resnet18` one.
    """

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._problems: list[str] = []
        self._loaded = False

    def add(self, names: Sequence[str], family: Family) -> None:
        """Let `family` make the networks of these names. Raises ValueError where one is taken."""
        for name in names:
            if name in self._families:
                owner = self._families[name].build.__module__
                raise ValueError(f"a network named {name} is registered already, by {owner}")
        self._families.update(dict.fromkeys(names, family))

    def find(self, arch: str) -> Family:
        """The family that has `arch`. Raises UserError where there is none, with what could not be imported."""
        self._load()
        if _key(arch) not in self._families:
            problems = "".join(f"; {problem}" for problem in self._problems)
            raise UserError(f"arch is {arch!r}; it should be one of {', '.join(self)}{problems}")
        return self._families[_key(arch)]

    def problems(self) -> list[str]:
        """A sentence for every entry point that could not be imported."""
        self._load()
        return list(self._problems)

    def __contains__(self, arch: object) -> bool:
        self._load()
        return isinstance(arch, str) and _key(arch) in self._families

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted((f"{name}NAME" if name.endswith(":") else name for name in self._families), key=_order))

    def __len__(self) -> int:
        self._load()
        return len(self._families)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in pkgutil.iter_modules(importlib.import_module(GROUP).__path__):
            importlib.import_module(f"{GROUP}.{module.name}")
        for entry in entry_points(group=GROUP):
            try:
                entry.load()
            except Exception as error:  # Somebody else's module may fail in any way; the other networks still serve.
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                self._problems.append(f"the entry point {entry.name} = {entry.value} cannot be imported ({reason})")


ARCHITECTURES = Registry()


def register(*names: str, published: Callable[[str, int], Rules] | None = None) -> Callable[[Build], Build]:
    """A decorator: the function builds the networks of these names; one that ends in a colon stands for a prefix.

    `published`, from a name and an image size: the rules to read other projects' state dicts of the same network; it
    raises UserError where theirs computes something else.
    """

    def add(build: Build) -> Build:
        ARCHITECTURES.add(names, Family(build, published))
        return build

    return add


def _key(arch: str) -> str:
    """What `arch` is registered under: itself, or the prefix up to its colon."""
    prefix, colon, _ = arch.partition(":")
    return prefix + colon


def _order(name: str) -> list[tuple[bool, int, str]]:
    """Numbers in names sort as numbers: resnet8 before resnet14."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"\d+|\D+", name)]
