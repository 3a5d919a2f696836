"""What classes hide: how much of finer classes, which nobody told them, teacher and student know, side by side."""

import html
import math
from dataclasses import dataclass

from icckd.report.reading import number
from icckd.report.results import Results
from icckd.report.shell import paragraphs
from icckd.report.tables import escaped, table
from icckd.report.wording import Measure, decimal, formatted, has_fine_numbers, images, percent, unit

_HEADING = "What classes hide"


@dataclass(frozen=True)
class Hidden(Measure):
    """A measure whose values lie between `nothing` and `everything`.

    These are None where the run does not tell how many classes there are.
    """

    nothing: float | None
    everything: float | None

    def place(self, value: float | None) -> float | None:
        """Where `value` lies from nothing, 0, to all, 1; None where either is unknown."""
        if value is None or self.nothing is None or self.everything is None or self.everything <= self.nothing:
            return None
        return min(max((value - self.nothing) / (self.everything - self.nothing), 0.0), 1.0)


def rows(results: Results) -> list[Hidden]:
    """The rows, but for those of which no stage has a number."""
    within = fine_within(results)
    chance = None if within is None else 1 / within
    every = [
        Hidden(
            "fine_probe",
            "Fine classes in features",
            f"a ridge regression on features names so many right among those of the {unit(results)}'s class",
            percent,
            chance,
            1.0,
        ),
        Hidden(
            "fine_probe_soft_labels",
            "Fine classes in soft labels",
            "likewise from the logarithms of the probabilities at temperature 4",
            percent,
            chance,
            1.0,
        ),
        Hidden(
            "fine_information_soft_labels",
            "What soft labels tell",
            "nats of information on the fine class, at least, for one who knows the class",
            decimal,
            0.0,
            None if within is None else math.log(within),
        ),
        Hidden(
            "neighbour_agreement",
            "Neighbours as the teacher's",
            f"of the 5 {unit(results)}s nearest to one within its class, beyond what chance gives",
            decimal,
            0.0,
            1.0,
        ),
    ]
    return [row for row in every if any(row.key in stage.measures for stage in results.stages.values())]


def fine_within(results: Results) -> float | None:
    """How many fine classes a class is made of, on average; None where the run does not tell, or nothing is hidden."""
    fine, classes = number(results.data.get("fine_classes")), len(results.classes)
    return fine / classes if fine is not None and 0 < classes < fine else None


def hidden_section(results: Results) -> str:
    """The section as HTML, empty where networks were trained on all the classes that there are."""
    if not has_fine_numbers(results):
        return ""
    heads = "".join(f'<th scope="col" class="number {stage}">{stage}</th>' for stage in results.stages)
    scale = '<span class="scale"><span>nothing</span><span>everything</span></span>'
    drawn = f'<th scope="col" aria-label="from nothing to everything">{scale}</th>'
    body = "\n".join(_row(results, row) for row in rows(results))
    return f"""<section><h2>{_HEADING}</h2>
{paragraphs(sentences(results))}
<table class="classes hidden">
<thead><tr><th scope="col">measure</th>{drawn}{heads}</tr></thead>
<tbody>
{body}
</tbody></table></section>"""


def hidden_text(results: Results) -> str:
    """The section as Markdown, empty likewise."""
    if not has_fine_numbers(results):
        return ""
    cells = [
        [row.label, *_values(results, row), formatted(row.nothing, row.form), formatted(row.everything, row.form)]
        for row in rows(results)
    ]
    lines = [escaped(sentence) for sentence in sentences(results)]
    return "\n\n".join([f"## {_HEADING}", *lines, table(["", *results.stages, "nothing", "everything"], cells)])


def sentences(results: Results) -> list[str]:
    """What the rows are about, and how they are read."""
    fine, classes = number(results.data.get("fine_classes")), len(results.classes)
    known = fine_within(results) is not None
    hide = f"{classes} classes, which hide {fine:g} finer ones" if known else "classes, which hide finer ones"
    return [
        f"The networks were trained to tell {hide}: no label told them which of those a training {unit(results)} is "
        "of. How well the fine classes can be read all the same from what a network gives says how much of the "
        "differences within a class it has kept, for a student to learn.",
        "Nothing is what chance would give; everything is every fine class told, or the very neighbours that the "
        f"teacher finds. Probes and neighbours are of {images(results)}, what soft labels tell is of training "
        f"{unit(results)}s.",
    ]


def _row(results: Results, row: Hidden) -> str:
    places = {name: row.place(stage.measures.get(row.key)) for name, stage in results.stages.items()}
    dots = "".join(
        f'<span class="dot {stage}" style="left:{100 * place:.2f}%"></span>'
        for stage, place in places.items()
        if place is not None
    )
    ends = "".join(f"<span>{formatted(end, row.form)}</span>" for end in (row.nothing, row.everything))
    numbers = "".join(f'<td class="number">{text}</td>' for text in _values(results, row))
    drawing = f'<span class="track">{dots}</span><span class="scale quiet">{ends}</span>'
    label = f'{html.escape(row.label)}<span class="meaning">{html.escape(row.meaning)}</span>'
    return f'<tr><th scope="row">{label}</th><td>{drawing}</td>{numbers}</tr>'


def _values(results: Results, row: Hidden) -> list[str]:
    """By stage."""
    return [formatted(stage.measures.get(row.key), row.form) for stage in results.stages.values()]
