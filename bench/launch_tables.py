"""Reads and writes the files of `kernels/tables/`: launch options, and comments that say where they were measured.

A file says all size classes of a kernel and width, or leaves them to `kernels/tables/shared.py`.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from icckd.files import write_text

# kernel, width of the elements, size class; fewer for what stands above.
Place = tuple[str | int, ...]
Options = dict[str, int]
_LENGTH = 120
_UNMEASURED = "No entry has been measured yet: all are"
_REST_UNMEASURED = "Entries without a comment have not been measured: they are"


@dataclass
class LaunchTable:
    """A table file: its docstring, TABLE, and the comments above its entries."""

    docstring: str
    table: dict[str, dict[str, dict[int, Options]]]
    comments: dict[Place, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "LaunchTable":
        """The file's content. A comment belongs to the entry that it stands above, or behind."""
        text = path.read_text(encoding="utf-8")
        module = ast.parse(text)
        (assignment,) = (node for node in module.body if isinstance(node, ast.Assign))
        assert isinstance(assignment.value, ast.Dict)
        comments = dict(_comments(assignment.value, text.splitlines()))
        docstring = ast.get_docstring(module, clean=False) or ""
        return cls(docstring, ast.literal_eval(assignment.value), comments)

    def measured(self, place: Place, options: Options, comment: str, classes: Mapping[int, Mapping[str, int]]) -> None:
        """Put an entry in its place among the size classes of its kernel and width, with what was measured.

        classes: These size classes as they are, for a file that has left them to the shared one.
        """
        kernel, width, bound = place
        widths = self.table.setdefault(str(kernel), {})
        own = widths.setdefault(str(width), {size: dict(present) for size, present in classes.items()})
        own[int(bound)] = options
        self.comments[place] = [comment]
        self.docstring = self.docstring.replace(_UNMEASURED, _REST_UNMEASURED)

    def write(self, path: Path) -> None:
        """The file, whole or not at all."""
        write_text(path, self.source())

    def source(self) -> str:
        """The file's text, as ruff formats it."""
        return "\n".join([f'"""{self.docstring}"""', "", "TABLE = {", *self._kernels(), "}", ""])

    def _kernels(self) -> Iterator[str]:
        for kernel, widths in self.table.items():
            yield from self._above((kernel,), 4)
            yield f'    "{kernel}": {{'
            for width, classes in widths.items():
                yield from self._above((kernel, width), 8)
                yield f'        "{width}": {{'
                for bound, options in classes.items():
                    yield from self._above((kernel, width, bound), 12)
                    yield from _entry(bound, options)
                yield "        },"
            yield "    },"

    def _above(self, place: Place, indent: int) -> Iterator[str]:
        yield from (" " * indent + f"# {comment}" for comment in self.comments.get(place, []))


def _entry(bound: int, options: Options) -> Iterator[str]:
    pairs = [f'"{name}": {value}' for name, value in options.items()]
    line = f"            {bound}: {{{', '.join(pairs)}}},"
    if len(line) <= _LENGTH:
        yield line
        return
    yield f"            {bound}: {{"
    yield from (f"                {pair}," for pair in pairs)
    yield "            },"


def _comments(node: ast.Dict, lines: list[str], place: Place = ()) -> Iterator[tuple[Place, list[str]]]:
    for key, value in zip(node.keys, node.values, strict=True):
        assert isinstance(key, ast.Constant)
        here = (*place, key.value)
        found = []
        above = key.lineno - 2
        while lines[above].strip().startswith("#"):
            found.insert(0, lines[above].strip(" #"))
            above -= 1
        innermost = len(here) == 3
        behind = re.search(r",\s*#(.*)$", lines[(value.end_lineno or value.lineno) - 1]) if innermost else None
        if behind:
            found.append(behind[1].strip())
        if found:
            yield here, found
        if isinstance(value, ast.Dict) and not innermost:
            yield from _comments(value, lines, here)
