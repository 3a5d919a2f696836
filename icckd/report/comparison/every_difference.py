"""Every difference of a comparison in one table, for the first look where there are many."""

import html

from icckd.report.comparison.curves import looks
from icckd.report.comparison.metrics import Metric
from icckd.report.comparison.results import Difference, Results

_Row = tuple[str, str, str]  # The group, what the row is called in it, and the variant.


def every_difference(results: Results) -> str:
    """A row for each variant that is compared, a column for each metric, as HTML."""
    rows = _rows(results)
    heads = "".join(
        f'<th scope="col" class="number">{html.escape(metric.label)}<span class="meaning">{metric.unit}</span></th>'
        for metric in results.metrics
    )
    colours, groups = looks(results), [group for group, _, _ in rows]
    body = "\n".join(
        f"<tr>{_group(group, groups.count(group)) if groups.index(group) == number else ''}"
        f'<th scope="row" class="{colours[variant].colour}">{html.escape(name)}</th>{_cells(results, variant)}</tr>'
        for number, (group, name, variant) in enumerate(rows)
    )
    corner = f"<td{' colspan=2' if any(groups) else ''}></td>"
    how = (
        f"Less {results.baseline_in_words}: means over the pairs of seeds. Bold: p stands at 0.05 after Holm's "
        "correction. With a star: before it only. Grey: not even then."
    )
    return f"""<p class="quiet">{html.escape(how)}</p>
<div class="scroll"><table class="every">
<thead><tr>{corner}{heads}</tr></thead>
<tbody>
{body}
</tbody></table></div>
"""


def _rows(results: Results) -> list[_Row]:
    """By the value at which lines are compared, where there are lines; in the order of the file otherwise."""
    if len(results.baselines) == 1:
        return [("", variant, variant) for variant in results.others]
    return [
        (f"{place:g}" if isinstance(place, float) else place, line.name, line.variants[place])
        for place in results.comparison.order()
        for line in results.lines
        if place in line.variants and line.variants[place] in results.others
    ]


def _group(name: str, rows: int) -> str:
    return f'<th scope="rowgroup" rowspan="{rows}">{html.escape(name)}</th>' if name else ""


def _cells(results: Results, variant: str) -> str:
    return "".join(_cell(metric, results.differences[variant][metric.name]) for metric in results.metrics)


def _cell(metric: Metric, difference: Difference) -> str:
    kind, star = (" changed", "") if difference.stands else ("", "*") if difference.is_apart else (" quiet", "")
    return f'<td class="number{kind}">{metric.difference(difference.estimate.mean)}{star}</td>'
