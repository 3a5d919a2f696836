"""The page's section on images that were made: what a student learned from that saw no training image."""

import html

from icckd.report.made import MadeImages
from icckd.report.soft_labels import image_tag

_SHOWN_CLASSES = 20


def made_images_section(found: MadeImages | None, classes: list[str]) -> str:
    """The section as HTML; nothing where no images were made."""
    if found is None:
        return ""
    rows = [_row(found, label, name) for label, name in enumerate(classes[:_SHOWN_CLASSES])]
    few = f" The first {_SHOWN_CLASSES} of {len(classes)} classes." if len(classes) > _SHOWN_CLASSES else ""
    return f"""<section><h2>What the student learned from</h2>
<div class="scroll"><table class="made">
<caption>The latest images of each class, as the teacher takes them, and its probability of that class.{few}</caption>
<tbody>
{"".join(rows)}
</tbody></table></div></section>"""


def _row(found: MadeImages, label: int, name: str) -> str:
    places = (found.labels == label).nonzero()[:, 0].tolist()
    cells = "".join(
        f"<td>{image_tag(found.images[place], f'Made image of class {name}')}"
        f'<span class="meaning">{100 * found.confidences[place].item():.0f} %</span></td>'
        for place in places
    )
    return f'<tr><th scope="row">{html.escape(name)}</th>{cells or "<td>none</td>"}</tr>\n'
