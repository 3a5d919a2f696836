"""Which networks there are: the one place where a family's names lead to the function that builds it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from icckd.registry import Registry

if TYPE_CHECKING:
    from icckd.models.model import Trunk

# From a network's name, the number of its images' channels and their size in pixels, the longer side's where they are
# not square, to its trunk.
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


ARCHITECTURES: Registry[Family] = Registry("network", "icckd.models")


def register(*names: str, published: Callable[[str, int], Rules] | None = None) -> Callable[[Build], Build]:
    """A decorator: the function builds the networks of these names; one that ends in a colon stands for a prefix.

    `published`, from a name and an image size: the rules to read other projects' state dicts of the same network; it
    raises UserError where theirs computes something else.
    """

    def add(build: Build) -> Build:
        for name in names:
            ARCHITECTURES.add(name, Family(build, published))
        return build

    return add
