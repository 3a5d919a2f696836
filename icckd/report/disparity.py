"""Disparity learning: the swap test in words, and both codes of test windows in pictures."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from icckd.report.codes import Codes
from icckd.report.figures import Cloud, Points, scatter_plot, short_label
from icckd.report.results import Results
from icckd.report.shell import framed, paragraphs
from icckd.report.tables import section_text
from icckd.report.wording import images, percent

_HEADING = "What people share, and what differs between them"
_COLOURS = ("series-1", "series-2", "series-3")
# With three colours, 21 kinds that differ, the first seven in their marker too.
_MARKERS = ("o", "^", "s", "x", "D", "v", "+")
_KINDS = 21
# What each picture shows at best, by code and group.
_AT_BEST = {
    ("class", "class"): "At best classes stand apart.",
    ("class", "person"): "At best people are mixed within each class.",
    ("disparity", "class"): "At best classes are mixed.",
    ("disparity", "person"): "At best people stand apart.",
}


def sentences(results: Results) -> list[str]:
    """What the swap test found."""
    teacher = results.stages.get("teacher")
    own, swapped = (
        teacher.measures.get(f"{name}_accuracy") if teacher else None for name in ("reconstruction", "swap")
    )
    if own is None or swapped is None:
        return []
    return [
        f"Of the {images(results)} whose class another person has too, the network names {percent(own)} rightly after "
        f"they were decoded from their own two codes, and {percent(swapped)} where the disparity code is that of the "
        "other person: the swap should change how something is done, and not what."
    ]


def _reading(results: Results) -> str:
    """How the pictures are read."""
    return (
        f"Each point is one of the {images(results)}, along the two directions in which its code varies most: "
        "principal components, with their share of the variance. The class code is the network's features, which are "
        "kept; the disparity code is dropped after training."
    )


def disparity_section(results: Results) -> str:
    """The section as HTML, empty where no teacher was trained so."""
    if results.codes is None:
        return ""
    figures = "\n".join(
        framed(scatter_plot(cloud), cloud.title, cloud.caption, _description(cloud))
        for cloud in clouds(results.codes, results.classes, _people(results))
    )
    return f"""<section><h2>{_HEADING}</h2>
{paragraphs([*sentences(results), _reading(results)])}
<div class="pair">
{figures}
</div></section>"""


def disparity_text(results: Results) -> str:
    """The section as Markdown, empty likewise."""
    return section_text(_HEADING, sentences(results))


def _people(results: Results) -> list[str]:
    """The names of the test windows' people, as far as the run tells."""
    names = results.data.get("people.test")
    return names if isinstance(names, list) else []


def clouds(codes: Codes, classes: Sequence[str], people: Sequence[str] = ()) -> list[Cloud]:
    """Both codes, each by class and by person; numbers, from 1, stand in for names of people that are not given."""

    def person(number: int) -> str:
        return people[number] if number < len(people) else f"person {number + 1}"

    groups: dict[str, tuple[Tensor, Callable[[int], str]]] = {
        "class": (codes.labels, classes.__getitem__),
        "person": (codes.people, person),
    }
    found = []
    for name, code in (("class", codes.class_codes), ("disparity", codes.disparity_codes)):
        places, shares = principal_components(code)
        axes = (f"first component ({_share(shares[0])})", f"second component ({_share(shares[1])})")
        for group, (of, name_of) in groups.items():
            title, caption = f"{name.capitalize()} code, by {group}", _AT_BEST[name, group]
            found.append(Cloud(f"{name}-code-by-{group}", title, caption, _kinds(places, of, name_of), axes))
    return found


def principal_components(rows: Tensor) -> tuple[Tensor, list[float]]:
    """Where (N, F) rows lie along their first two principal components, (N, 2), and each one's share of the variance.

    A component points to where its largest coefficient, by size, is positive. In float64. Components that rows have
    not, where N or F is too small, are 0.
    """
    centred = rows.double() - rows.double().mean(dim=0)
    left, sizes, right = torch.linalg.svd(centred, full_matrices=False)
    largest = right.abs().argmax(dim=1, keepdim=True)
    places = left * sizes * right.gather(1, largest).squeeze(1).sign()
    shares = sizes.square() / sizes.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    lacking = max(0, 2 - places.shape[1])
    padded = torch.nn.functional.pad(places, (0, lacking))[:, :2]
    return padded, [*shares[:2].tolist(), *(0.0,) * lacking]


def _kinds(places: Tensor, of: Tensor, name_of: Callable[[int], str]) -> list[Points]:
    """The points of each group that there are, of the first 21 of them."""
    kinds = []
    for number in of.unique().tolist()[:_KINDS]:
        across, up = places[of == number].T.tolist()
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        kinds.append(Points(short_label(name_of(number)), colour, marker, across, up))
    return kinds


def _share(share: float) -> str:
    return f"{100 * share:.0f} %"


def _description(cloud: Cloud) -> str:
    """The picture in words: how many points of which kind, and where their middle is."""
    parts = []
    for kind in cloud.kinds:
        middle = [sum(values) / len(values) for values in (kind.across, kind.up)]
        parts.append(f"{len(kind.across)} of {kind.label} around ({middle[0]:.3g}, {middle[1]:.3g})")
    return f"{cloud.title}: {'; '.join(parts)}"
