"""report.html: one page that needs nothing but itself."""

import html

from icckd.report.charts import Section, sections
from icckd.report.class_augmentation import class_augmentation_section
from icckd.report.disparity import disparity_section
from icckd.report.federated import federated_section
from icckd.report.hidden import hidden_section
from icckd.report.made_images import made_images_section
from icckd.report.per_class import per_class_section
from icckd.report.recipe import effective, recipe
from icckd.report.results import Results
from icckd.report.shell import figure, header, pairs_table, paragraphs, settings_table, shell
from icckd.report.soft_labels import soft_label_section
from icckd.report.wording import findings, formatted, measures, notes, title

_SQUARE = 4  # So many charts stand in two rows of two.


def html_page(results: Results) -> str:
    """The page as text; the same results give the same text."""
    parts = [
        header(title(results), findings(results)),
        _main_numbers(results),
        _notes(results),
        *(_charts(section) for section in sections(results)),
        made_images_section(results.made_images, results.classes),
        hidden_section(results),
        disparity_section(results),
        soft_label_section(results),
        class_augmentation_section(results.class_augmentation),
        federated_section(results.federation),
        per_class_section(results),
        _settings(results),
    ]
    body = "\n".join(part for part in parts if part)
    return shell(title(results), body)


def _main_numbers(results: Results) -> str:
    if not results.stages:
        return ""
    heads = "".join(
        f'<th scope="col" class="number {name}">{name}<span class="meaning">{html.escape(stage.arch)}</span></th>'
        for name, stage in results.stages.items()
    )
    rows = []
    for measure in measures(results):
        values = [formatted(stage.measures.get(measure.key), measure.form) for stage in results.stages.values()]
        cells = "".join(f'<td class="number">{value}</td>' for value in values)
        label = f'{measure.label}<span class="meaning">{html.escape(measure.meaning)}</span>'
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    body = "\n".join(rows)
    return f"""<table class="main-numbers">
<thead><tr><th scope="col">Measure</th>{heads}</tr></thead>
<tbody>
{body}
</tbody></table>"""


def _notes(results: Results) -> str:
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes(results))
    return f'<ul class="notes quiet">{items}</ul>'


def _charts(section: Section) -> str:
    figures = "\n".join(figure(chart) for chart in section.charts)
    heading = f"<h2>{html.escape(section.heading)}</h2>\n{paragraphs([section.text] if section.text else [])}"
    grid = "pair" if len(section.charts) == _SQUARE else "grid"
    return f'<section>{heading}<div class="{grid}">\n{figures}\n</div></section>'


def _settings(results: Results) -> str:
    parts = [
        pairs_table("In force", recipe(results)),
        settings_table(results.settings, effective(results)),
        pairs_table("Computed with", results.environment.items()),
    ]
    return "<section><h2>Settings and environment</h2>\n" + "\n".join(part for part in parts if part) + "</section>"
