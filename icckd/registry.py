"""What is found by name: the files of a package of this one, and what other installed packages add to it."""

import importlib
import pkgutil
import re
from collections.abc import Collection, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from icckd.errors import UserError, printable

Item = TypeVar("Item")


class Registry(Collection[str], Generic[Item]):
    """Items by name, in order; asked for the first time, it imports everything that may add to it.

    That is every module of `package`, and what other packages declare as entry points of the group of the same name:
    modules whose import calls `add`. One of these that cannot be imported costs nobody else anything. A name that ends
    in a colon stands for all that begin with it: `timm:`, listed as `timm:NAME`, makes `timm:resnet18` one.

    Args:
        kind: What an item is, in an error message: "network".
        package: Whose modules are the built-in items: "icckd.models".
    """

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self.package = package
        self._items: dict[str, Item] = {}
        self._problems: list[str] = []
        self._loaded = False

    def add(self, name: str, item: Item) -> None:
        """Make `item` known by `name`. Raises ValueError where that name, with hyphens or underscores, is taken."""
        for taken, other in self._items.items():
            if taken.replace("_", "-") == name.replace("_", "-"):
                raise ValueError(f"a {self.kind} named {taken} is registered already: {other!r}")
        self._items[name] = item

    def find(self, name: str, setting: str) -> Item:
        """The item of that name. Raises UserError, naming the setting, where there is none, and what is missing."""
        if name in self:
            return self._items[_key(name)]
        raise self.unknown(name, setting, self)

    def unknown(self, name: str, setting: str, known: Collection[str]) -> UserError:
        """The error that `setting` is `name`, where it should be one of `known`."""
        problems = "".join(f"; {problem}" for problem in self.problems())
        return UserError(f"{setting} is {name!r}; it should be one of {', '.join(known)}{problems}")

    def problems(self) -> list[str]:
        """A sentence for every entry point that could not be imported."""
        self._load()
        return list(self._problems)

    def __contains__(self, name: object) -> bool:
        self._load()
        return isinstance(name, str) and _key(name) in self._items

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted((f"{name}NAME" if name.endswith(":") else name for name in self._items), key=_order))

    def __len__(self) -> int:
        self._load()
        return len(self._items)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry in entry_points(group=self.package):
            try:
                entry.load()
            except (Exception, SystemExit) as error:  # Another's module may fail in any way; the others still serve.
                reason = printable(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
                self._problems.append(f"the entry point {entry.name} = {entry.value} cannot be imported ({reason})")


def _key(name: str) -> str:
    """What `name` is registered under: itself, or the prefix up to its colon."""
    prefix, colon, _ = name.partition(":")
    return prefix + colon


def _order(name: str) -> list[tuple[bool, int, str]]:
    """Numbers in names sort as numbers: resnet8 before resnet14."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"\d+|\D+", name)]
