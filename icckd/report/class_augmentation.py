"""Crops by class: which classes have a milder one, and why, in words, tables and pictures."""

import html
from itertools import cycle
from statistics import fmean

from icckd.report.figures import Chart, Curve, short_label
from icckd.report.shell import figure, paragraphs
from icckd.report.tables import section_text, table
from icckd.report.trials import ClassAugmentation, TriedClass
from icckd.report.wording import UNKNOWN, formatted, percent

_SHOWN_CLASSES = 20
_DRAWN_CLASSES = 5
_AXIS = "smallest crop, as a fraction of the area"


def sentences(found: ClassAugmentation) -> list[str]:
    """What was tried, and which classes were chosen and why."""
    tried = f"{', '.join(map(_area, found.areas[:-1]))} and {_area(found.areas[-1])}"
    made = (
        f"Before the teacher, networks like it were trained on {100 * (1 - found.holdout):g} % of the training images, "
        f"with random crops of at least {tried} of the image's area, and asked about the rest. A class's false "
        "positives are the images of other classes that are called it."
    )
    chosen = found.chosen
    if not chosen:
        return [made, "No class has fewer of them with a milder crop than with the strongest: all have that one."]
    listed = ", ".join(map(_reason, chosen[:_DRAWN_CLASSES]))
    more = f", and {len(chosen) - _DRAWN_CLASSES} more" if len(chosen) > _DRAWN_CLASSES else ""
    have = "class has" if len(chosen) == 1 else "classes have"
    return [
        made,
        f"{len(chosen)} of {len(found.classes)} {have} a milder crop in the training of teacher and student, that of "
        f"the fewest false positives: {listed}{more}. All others have the strongest, of at least "
        f"{_area(found.areas[0])}.",
    ]


def _reason(chosen: TriedClass) -> str:
    first = chosen.false_positives[0] or 0.0
    return f"{chosen.name} (at least {_area(chosen.chosen or 0.0)}: {first - chosen.gain:.0f} rather than {first:.0f})"


def _area(area: float) -> str:
    return f"{100 * area:g} %"


def charts(found: ClassAugmentation) -> list[Chart]:
    """Accuracy and false positives by area: a curve for each class that was chosen, the others together."""
    return [
        Chart(
            "accuracy-by-crop",
            "Accuracy by crop",
            "On the held-out images; the others' mean, lowest and highest. Crops are strongest on the left.",
            _curves(found, "accuracy"),
            percent=True,
            axis=_AXIS,
        ),
        Chart(
            "false-positives-by-crop",
            "False positives by crop",
            "Images of other classes that are called the class; the others' mean, lowest and highest.",
            _curves(found, "false_positives"),
            axis=_AXIS,
        ),
    ]


def _curves(found: ClassAugmentation, measure: str) -> list[Curve]:
    drawn = found.chosen[:_DRAWN_CLASSES]
    looks = cycle((f"series-{colour}", style) for style in ("-", "--") for colour in (1, 2, 3))
    curves = [
        Curve(short_label(each.name), colour, found.areas, getattr(each, measure), style)
        for each, (colour, style) in zip(drawn, looks, strict=False)
    ]
    rest = [getattr(each, measure) for each in found.classes[len(drawn) :]]
    by_area = [[value for value in values if value is not None] for values in zip(*rest, strict=True)]
    mean, low, high = ([of(values) if values else None for values in by_area] for of in (fmean, min, max))
    curves.append(Curve("others" if drawn else "all classes", "ink", found.areas, mean, ":", (low, high)))
    return [curve for curve in curves if any(value is not None for value in curve.values)]


def class_augmentation_section(found: ClassAugmentation | None) -> str:
    """The section as HTML, empty without trials."""
    if found is None:
        return ""
    figures = "\n".join(figure(chart) for chart in charts(found) if chart.curves)
    accuracy = _html_table("Accuracy", found, "accuracy")
    return f"""<section><h2>Crops by class</h2>
{paragraphs(sentences(found))}
<div class="grid">
{figures}
</div>
{_html_table("False positives", found, "false_positives")}
<details><summary>Accuracy of these classes</summary>
{accuracy}</details></section>"""


def class_augmentation_text(found: ClassAugmentation | None) -> str:
    """The section as Markdown, empty without trials."""
    if found is None:
        return ""
    parts = [section_text("Crops by class", sentences(found))]
    for name, measure in (("False positives", "false_positives"), ("Accuracy", "accuracy")):
        rows = [[each.name, _chosen(each), *_values(each, measure)] for each in _shown(found)]
        parts.append(f"{_caption(name, found)}:\n\n{table(_heads(found), rows)}")
    return "\n\n".join(parts)


def _html_table(name: str, found: ClassAugmentation, measure: str) -> str:
    heads = "".join(f'<th scope="col" class="number">{head}</th>' for head in _heads(found)[1:])
    body = "\n".join(_row(each, found.areas, _values(each, measure)) for each in _shown(found))
    return f"""<div class="scroll"><table class="runs"><caption>{_caption(name, found)}</caption>
<thead><tr><th scope="col">class</th>{heads}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _row(each: TriedClass, areas: list[float], values: list[str]) -> str:
    cells = "".join(
        f'<td class="number{" changed" if area == each.chosen else ""}">{value}</td>'
        for area, value in zip(areas, values, strict=True)
    )
    return f'<tr><th scope="row">{html.escape(each.name)}</th><td class="number">{_chosen(each)}</td>{cells}</tr>'


def _shown(found: ClassAugmentation) -> list[TriedClass]:
    return found.classes[: max(_SHOWN_CLASSES, len(found.chosen))]


def _caption(name: str, found: ClassAugmentation) -> str:
    shown, count = len(_shown(found)), len(found.classes)
    which = "" if shown == count else f" ({shown} of {count} classes, those with most to gain)"
    return f"{name} on the held-out images with crops of at least so much of the area{which}"


def _heads(found: ClassAugmentation) -> list[str]:
    return ["class", "chosen", *map(_area, found.areas)]


def _chosen(each: TriedClass) -> str:
    return UNKNOWN if each.chosen is None else _area(each.chosen)


def _values(each: TriedClass, measure: str) -> list[str]:
    if measure == "accuracy":
        return [formatted(value, percent) for value in each.accuracy]
    return [formatted(count, "{:.0f}".format) for count in each.false_positives]
