"""What every page is made of: the document around it, a figure, a table of settings."""

import html
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from icckd.report.style import STYLE
from icckd.settings import Settings, flat

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


def figure(title: str, drawing: str, description: str, caption: str) -> str:
    """The <svg> `drawing` under its title; `description` says in words what it shows."""
    described = drawing.replace("<svg", f'<svg role="img" aria-label="{html.escape(description)}"', 1)
    return (
        f"<figure><h3>{html.escape(title)}</h3>\n{described}\n<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def settings_table(settings: Mapping[str, Any]) -> str:
    """Settings by dotted name beside their defaults, folded away."""
    defaults = flat(asdict(Settings()))
    rows = []
    for name, value in settings.items():
        changed = ' class="changed"' if value != defaults.get(name) else ""
        cells = f"<td>{html.escape(shown(value))}</td><td>{html.escape(shown(defaults.get(name)))}</td>"
        rows.append(f'<tr{changed}><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    body = "\n".join(rows)
    return f"""<details><summary>Settings ({len(rows)}; those changed from their defaults in bold)</summary>
<table class="pairs">
<thead><tr><th scope="col">Setting</th><th scope="col">Value</th><th scope="col">Default</th></tr></thead>
<tbody>
{body}
</tbody></table></details>"""


def shown(value: Any) -> str:
    """A setting's value as YAML has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
