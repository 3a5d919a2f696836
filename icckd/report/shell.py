"""What every page is made of: the document around it, its header, a figure, tables of settings and of pairs."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from icckd.report.figures import Chart, line_chart
from icckd.report.style import STYLE
from icckd.settings import Settings, flat
from icckd.settings.names import shown

_SECURITY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def shell(title: str, body: str) -> str:
    """The page with the HTML `body`; it needs nothing but itself, and may load nothing."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_SECURITY}">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def header(title: str, sentences: Iterable[str]) -> str:
    """The page's title, and what it says first."""
    return f"<header><h1>{html.escape(title)}</h1>\n{paragraphs(sentences)}</header>"


def paragraphs(sentences: Iterable[str]) -> str:
    """A paragraph of each."""
    return "\n".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)


def figure(chart: Chart) -> str:
    """The chart under its title, with a description in words for those who cannot see it."""
    return framed(line_chart(chart), chart.title, chart.caption, _description(chart))


def framed(drawing: str, title: str, caption: str, description: str) -> str:
    """An <svg> element under its title; `description` says in words what it shows."""
    label = f'role="img" aria-label="{html.escape(description)}"'
    drawing = drawing.replace("<svg", f"<svg {label}", 1)
    title, caption = html.escape(title), html.escape(caption)
    return f"<figure><h3>{title}</h3>\n{drawing}\n<figcaption>{caption}</figcaption></figure>"


def settings_table(
    settings: Mapping[str, Any],
    effective: Mapping[str, Any] = MappingProxyType({}),
    heading: str = "Settings",
) -> str:
    """Settings by dotted name beside their defaults, folded away; null with what it stands for, where that is told."""
    defaults = flat(asdict(Settings()))
    rows = []
    for name, value in settings.items():
        changed = ' class="changed"' if value != defaults.get(name) else ""
        meant = f": {shown(effective[name])}" if value is None and effective.get(name) is not None else ""
        cells = f"<td>{html.escape(shown(value) + meant)}</td><td>{html.escape(shown(defaults.get(name)))}</td>"
        rows.append(f'<tr{changed}><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    body = "\n".join(rows)
    return f"""<details><summary>{heading} ({len(rows)}; those changed from their defaults in bold)</summary>
<table class="pairs">
<thead><tr><th scope="col">Setting</th><th scope="col">Value</th><th scope="col">Default</th></tr></thead>
<tbody>
{body}
</tbody></table></details>"""


def pairs_table(caption: str, pairs: Iterable[tuple[str, str]]) -> str:
    """A table of names and texts; empty where there are none."""
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(text)}</td></tr>' for name, text in pairs
    )
    if not rows:
        return ""
    return f'<table class="pairs"><caption>{caption}</caption>\n<tbody>\n{rows}\n</tbody></table>'


def _description(chart: Chart) -> str:
    """The chart in words: where each curve starts and ends."""
    parts = []
    for curve in chart.curves:
        known = [(epoch, value) for epoch, value in zip(curve.epochs, curve.values, strict=True) if value is not None]
        (first, start), (last, end) = known[0], known[-1]
        parts.append(f"{curve.label} {start:.4g} at {chart.axis} {first:g}, {end:.4g} at {chart.axis} {last:g}")
    return f"{chart.title}: {'; '.join(parts)}"
