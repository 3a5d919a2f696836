"""What is found by name: the files of a package of this one, and what other installed packages add to it."""

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from types import ModuleType
from typing import Generic, TypeVar

from icckd.errors import UserError, printable

Item = TypeVar("Item")


class Registry(Generic[Item]):
    """Items of one kind by name; asked for the first time, it imports everything that may add to it.

    That is every module of `package`, and what other packages declare as entry points of the group of the same name:
    modules, whose import calls `add`. One that cannot be imported costs nobody else anything; `get` tells why it is
    missing.

    Args:
        kind: What the items are, in an error message: "method".
        package: The package whose modules are the built-in items, such as "icckd.methods".
    """

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self.package = package
        self._items: dict[str, Item] = {}
        self._missing: dict[str, str] = {}
        self._complete = False

    def add(self, name: str, item: Item) -> None:
        """Make `item` known by `name`. Raises ValueError where that name is taken."""
        if name in self._items:
            raise ValueError(f"there are two of the {self.kind} {name!r}: {self._items[name]!r} and {item!r}")
        self._items[name] = item

    def names(self) -> tuple[str, ...]:
        """All names, in alphabetical order."""
        self._load()
        return tuple(sorted(self._items))

    def get(self, name: str, setting: str) -> Item:
        """The item of that name. Raises UserError, naming the setting that gave it, where there is none."""
        self._load()
        if name in self._items:
            return self._items[name]
        if name in self._missing:
            raise UserError(f"{setting} is {name!r}, which cannot be loaded: {self._missing[name]}")
        raise UserError(f"{setting} is {name!r}; it should be one of {', '.join(self.names())}")

    def missing(self) -> dict[str, str]:
        """Why what other packages declare could not be loaded, by the name of its entry point."""
        self._load()
        return dict(self._missing)

    def _load(self) -> None:
        if self._complete:
            return
        self._complete = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry in entry_points(group=self.package):
            self._try(entry.name, entry.load)

    def _try(self, name: str, load: Callable[[], ModuleType]) -> None:
        try:
            load()
        except Exception as error:  # Whatever another package's import may raise.
            self._missing[name] = printable(f"{type(error).__name__}: {error}")
