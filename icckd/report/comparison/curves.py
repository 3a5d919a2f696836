"""Learning curves: the seeds' mean of each variant by epoch, and how the baseline is left behind."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from icckd.report.comparison.metrics import Metric, metric_of
from icckd.report.comparison.results import Results
from icckd.report.comparison.runs import Run
from icckd.report.comparison.statistics import Estimate, estimate, paired
from icckd.report.figures import SERIES, Chart, Curve
from icckd.report.shell import figure

# A chart shows the baseline and so many others: each has a line style and a colour of its own.
_TOGETHER = 3
_UNFOLDED = 12  # Charts; more are folded away.
_STYLES = ("-", "-.", ":")
_BASELINE = ("ink", "--")

ByEpoch = dict[float, dict[int, float]]  # By epoch and seed.


@dataclass(frozen=True)
class Look:
    """How a variant is drawn, here and wherever it has a colour."""

    colour: str
    style: str


def looks(results: Results) -> dict[str, Look]:
    """By variant. One line has one colour; where there are none, variants have them by turns."""
    found = dict.fromkeys(results.baselines, Look(*_BASELINE))
    line_of = {variant: number for number, line in enumerate(results.lines) for variant in line.variants.values()}
    for place, variant in enumerate(results.others):
        colour = series(line_of[variant]) if len(results.lines) > 1 else f"series-{place % _TOGETHER + 1}"
        found[variant] = Look(colour, _STYLES[place % _TOGETHER])
    return found


def series(line: int) -> str:
    """The colour of a line by its number; the baseline's is 0."""
    return f"series-{(line - 1) % SERIES + 1}" if line else _BASELINE[0]


def learning_curves(results: Results) -> str:
    """The section as HTML, empty where no run has a record of its epochs."""
    figures = [figure(chart) for metric in _followed(results) for chart in charts(results, metric)]
    if not figures:
        return ""
    text = "Lines are means of the seeds, bands reach from the lowest to the highest seed."
    pairs = '<div class="pair">\n' + "\n".join(figures) + "\n</div>"
    if len(figures) > _UNFOLDED:
        pairs = f"<details><summary>All {len(figures)} charts</summary>\n{pairs}</details>"
    return f'<section><h2>Learning curves</h2>\n<p class="quiet">{text}</p>\n{pairs}</section>'


def _followed(results: Results) -> list[Metric]:
    """The accuracies, student's first, and what else is compared and measured after each epoch."""
    accuracies = [f"{stage}.test_accuracy" for stage in reversed(results.comparison.stages)]
    return [metric_of(name, results.comparison) for name in dict.fromkeys([*accuracies, *results.comparison.metrics])]


def charts(results: Results, metric: Metric) -> Iterator[Chart]:
    """The metric by epoch, then the same less the baseline's; so often that no chart has too many curves."""
    by_variant = {variant: _by_epoch(results.runs_of(variant), metric) for variant in results.comparison.variants}
    for number, (baseline, *others_shown) in enumerate(_together(results)):
        shown = [baseline, *others_shown]
        values = _merged({variant: by_variant[variant] for variant in shown if by_variant[variant]})
        name = f"{metric.name.replace('.', '-').replace('_', '-')}-{number}"
        if values:
            yield _means(results, metric, values, baseline, name)
        others = {names: of for names, of in values.items() if baseline not in names}
        apart = {names: _later(_paired(of, by_variant[baseline])) for names, of in others.items()}
        if any(apart.values()):
            yield _apart(results, metric, apart, baseline, f"{name}-apart")


def _together(results: Results) -> list[list[str]]:
    """The variants of each chart, their baseline first."""
    charts = []
    for baseline in results.baselines:
        others = [name for name in results.others if results.baseline_of[name] == baseline]
        starts = range(0, max(len(others), 1), _TOGETHER)
        charts += [[baseline, *others[start : start + _TOGETHER]] for start in starts]
    return charts


def _means(results: Results, metric: Metric, values: dict[tuple[str, ...], ByEpoch], baseline: str, name: str) -> Chart:
    title = f"{metric.label}, {baseline} and others" if len(results.baselines) > 1 else metric.label
    curves = [
        _curve(results, names, {epoch: estimate(seeds) for epoch, seeds in of.items()}, _extremes)
        for names, of in values.items()
    ]
    return Chart(name, title, "After each epoch.", curves, percent=metric.percent)


def _apart(
    results: Results, metric: Metric, apart: dict[tuple[str, ...], dict[float, Estimate]], baseline: str, name: str
) -> Chart:
    curves = [_curve(results, names, of, _interval) for names, of in apart.items() if of]
    title = f"{metric.label} less that of {baseline}"
    unit = f", in {metric.unit}" if metric.unit else ""
    caption = f"Paired by seed, over the last half of the training{unit}; the band is the 95 % interval."
    return Chart(name, title, caption, curves, percent=metric.percent, zero=True)


def _curve(
    results: Results,
    names: tuple[str, ...],
    by_epoch: dict[float, Estimate],
    ends: Callable[[Estimate], tuple[float | None, float | None]],
) -> Curve:
    look = looks(results)[names[0]]
    low, high = zip(*(ends(of) for of in by_epoch.values()), strict=True)
    means = [of.mean for of in by_epoch.values()]
    return Curve(", ".join(names), look.colour, list(by_epoch), means, look.style, (low, high))


def _extremes(of: Estimate) -> tuple[float, float]:
    return min(of.values.values()), max(of.values.values())


def _interval(of: Estimate) -> tuple[float | None, float | None]:
    return of.low, of.high


def _by_epoch(runs: dict[int, Run], metric: Metric) -> ByEpoch:
    stage, _, key = metric.name.partition(".")
    found: ByEpoch = {}
    for seed, run in runs.items():
        for record in run.history.get(stage, []):
            epoch, value = record["epoch"], record.get(key)
            if epoch is not None and value is not None:
                found.setdefault(epoch, {})[seed] = value
    return dict(sorted(found.items()))


def _paired(of: ByEpoch, base: ByEpoch) -> dict[float, Estimate]:
    found = {epoch: paired(seeds, base.get(epoch, {})) for epoch, seeds in of.items()}
    return {epoch: difference for epoch, difference in found.items() if difference.n}


def _later(by_epoch: dict[float, Estimate]) -> dict[float, Estimate]:
    """The last half: before, differences are large and mean little."""
    middle = max(by_epoch, default=0.0) / 2
    return {epoch: of for epoch, of in by_epoch.items() if epoch > middle}


def _merged(by_variant: dict[str, ByEpoch]) -> dict[tuple[str, ...], ByEpoch]:
    """Variants whose values are the same, as those that share a teacher, are one curve."""
    merged: list[tuple[list[str], ByEpoch]] = []
    for variant, values in by_variant.items():
        same = next((names for names, others in merged if others == values), None)
        if same is None:
            merged.append(([variant], values))
        else:
            same.append(variant)
    return {tuple(names): values for names, values in merged}
