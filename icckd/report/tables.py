"""Markdown that reads well as plain text too: tables, and sections of sentences."""

from collections.abc import Sequence


def table(heads: list[str], rows: list[list[str]], text_columns: int = 1) -> str:
    """A Markdown table whose columns also line up as plain text; the columns after `text_columns` hold numbers."""
    cells = [[escaped(cell) for cell in row] for row in [heads, *rows]]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(heads))]
    rule = ["-" * width if column < text_columns else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = []
    for row in (cells[0], rule, *cells[1:]):
        padded = [
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def section_text(heading: str, sentences: Sequence[str]) -> str:
    """A section of these sentences, a paragraph each; empty without any."""
    return "\n\n".join([f"## {heading}", *map(escaped, sentences)]) if sentences else ""


def escaped(text: str) -> str:
    """`text` as Markdown shows it: no table cell, tag or code span can begin in it."""
    for character, replacement in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`")):
        text = text.replace(character, replacement)
    return text
