"""compare.md: the same for a terminal."""

from icckd.report.comparison.findings import at_a_glance, findings, listed, notes, overview, seeds_text, title
from icckd.report.comparison.metrics import Metric, p_text
from icckd.report.comparison.results import Results
from icckd.report.tables import escaped, table


def markdown_page(results: Results) -> str:
    """The page as text; the same results give the same text."""
    parts = [f"# {escaped(title(results))}", *(escaped(sentence) for sentence in overview(results))]
    parts.append(_glance(results))
    parts += [_metric(results, metric) for metric in results.metrics]
    parts.append("\n".join(f"- {escaped(note)}" for note in notes(results)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _glance(results: Results) -> str:
    metrics = results.metrics if results.others else []
    return "\n".join(escaped(f"- {metric.label}: {at_a_glance(results, metric)}") for metric in metrics)


def _metric(results: Results, metric: Metric) -> str:
    found = "\n".join(escaped(f"- {listed(of.variants)}: {of.verdict}{of.reasons}") for of in findings(results, metric))
    parts = [f"## {metric.label}", found, _means(results, metric), _differences(results, metric)]
    return "\n\n".join(part for part in parts if part)


def _means(results: Results, metric: Metric) -> str:
    rows = [
        [variant, metric.value(of.mean), f"± {metric.spread(of.sd)}", metric.range(of.low, of.high), str(of.n)]
        for variant, of in ((variant, of[metric.name]) for variant, of in results.estimates.items())
    ]
    return table(["variant", "mean", "sd", "95 % interval", "n"], rows)


def _differences(results: Results, metric: Metric) -> str:
    if not results.differences:
        return ""
    heads = [f"less {results.baseline_in_words}", metric.unit or "difference", "95 % interval", "p", "p (Holm)", "n"]
    rows = [
        [
            variant,
            metric.difference(of.estimate.mean),
            metric.between(of.estimate.low, of.estimate.high),
            p_text(of.p),
            p_text(of.adjusted),
            str(of.estimate.n),
        ]
        for variant, of in ((variant, of[metric.name]) for variant, of in results.differences.items())
    ]
    if metric.smallest is not None:
        heads.append(f"seeds for {metric.size(metric.smallest)}")
        for row, by_metric in zip(rows, results.differences.values(), strict=True):
            row.append(seeds_text(by_metric[metric.name].needed))
    return table(heads, rows)
