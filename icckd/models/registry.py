"""Which networks there are: the one place where a family's names lead to the function that builds it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from icckd.errors import UserError

if TYPE_CHECKING:
    from icckd.models.model import Trunk

GROUP = "icckd.models"

# From a network's name, the number of its images' channels and their size in pixels to the network before its classifier.
Build = Callable[[str, int, int], "Trunk"]


class Registry(Collection[str]):
    """The names of all networks, sorted; those of files in this folder and of entry points come in when first asked for.

    A name that ends in a colon stands for all that begin with it: it is listed as `timm:NAME`, and `timm:resnet18` is in.
    """

    def __init__(self) -> None:
        self._families: dict[str, Build] = {}
        self._broken: list[str] = []
        self._loaded = False

    def add(self, names: tuple[str, ...], build: Build) -> None:
        """Let `build` make the networks of these names. Raises ValueError where one is taken."""
        taken = [name for name in names if name in self._families]
        if taken:
            raise ValueError(
                f"a network named {taken[0]} is registered already, by {self._families[taken[0]].__module__}"
            )
        self._families.update(dict.fromkeys(names, build))

    def find(self, arch: str) -> Build:
        """The function that builds `arch`. Raises UserError where there is none, with what could not be imported."""
        self._load()
        build = self._families.get(_key(arch))
        if build is None:
            broken = "".join(f"; {problem}" for problem in self._broken)
            raise UserError(f"arch is {arch!r}; it should be one of {', '.join(self)}{broken}")
        return build

    def problems(self) -> list[str]:
        """A sentence for every entry point that could not be imported."""
        self._load()
        return list(self._broken)

    def __contains__(self, arch: object) -> bool:
        self._load()
        return isinstance(arch, str) and _key(arch) in self._families

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(f"{name}NAME" if name.endswith(":") else name for name in self._families))

    def __len__(self) -> int:
        self._load()
        return len(self._families)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in pkgutil.iter_modules(importlib.import_module(__package__).__path__):
            importlib.import_module(f"{__package__}.{module.name}")
        for entry in entry_points(group=GROUP):
            try:
                entry.load()
            except Exception as error:  # Somebody else's module can fail in any way, and the other networks need not.
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                self._broken.append(f"the entry point {entry.name} = {entry.value} cannot be imported ({reason})")


ARCHITECTURES = Registry()


def register(*names: str) -> Callable[[Build], Build]:
    """A decorator: the function builds the networks of these names; one that ends in a colon stands for a prefix."""

    def add(build: Build) -> Build:
        ARCHITECTURES.add(names, build)
        return build

    return add


def _key(arch: str) -> str:
    """What `arch` is registered under: itself, or the prefix before its colon."""
    prefix, colon, _ = arch.partition(":")
    return prefix + colon
