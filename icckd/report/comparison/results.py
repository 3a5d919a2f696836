"""A comparison's finished runs and their statistics: what the pages are made of."""

from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from icckd.report.comparison.metrics import Metric, metric_of
from icckd.report.comparison.runs import Run, RunKey
from icckd.report.comparison.statistics import LEVEL, Estimate, Needed, estimate, holm, needed, p_value, paired
from icckd.settings.comparison import Comparison, Place

_NAMED = 3  # Baselines that are listed.


@dataclass(frozen=True)
class Difference:
    """A variant's differences to its baseline, paired by seed.

    `p` is two-sided, `adjusted` is Holm's over all differences of the comparison. `needed`: the seeds that the smallest
    difference of interest needs; None where there is no such difference, or no spread to go by.
    """

    estimate: Estimate
    p: float | None
    adjusted: float | None
    needed: Needed | None

    @property
    def is_apart(self) -> bool:
        """Does p say that it is not chance?"""
        return self.p is not None and self.p <= 1 - LEVEL

    @property
    def stands(self) -> bool:
        """Does p say so after Holm's correction too?"""
        return self.adjusted is not None and self.adjusted <= 1 - LEVEL


@dataclass(frozen=True)
class Line:
    """Variants that differ in nothing but what the metrics are drawn against, by their value of it, and a name."""

    name: str
    variants: dict[Place, str]


@dataclass(frozen=True)
class Results:
    """What there is: the finished runs, those that are not, and by variant and metric's name what they say.

    `tests`: how many differences have a p-value; those of teachers that several variants share are one.
    """

    comparison: Comparison
    metrics: list[Metric]
    runs: dict[RunKey, Run]
    unfinished: list[RunKey]
    estimates: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Difference]]
    tests: int

    @cached_property
    def baseline_of(self) -> dict[str, str]:
        """What each variant is compared with; a baseline with itself."""
        return self.comparison.baselines()

    @cached_property
    def lines(self) -> list[Line]:
        """Those of the comparison, the baseline's first."""
        return [Line(_line_name(list(line.values())), line) for line in self.comparison.lines()]

    @property
    def others(self) -> list[str]:
        """The variants that are compared with another."""
        return [name for name, baseline in self.baseline_of.items() if name != baseline]

    @property
    def baselines(self) -> list[str]:
        """The variants that others are compared with."""
        return [name for name, baseline in self.baseline_of.items() if name == baseline]

    @property
    def baseline_in_words(self) -> str:
        """What the others are compared with."""
        if len(self.baselines) == 1:
            return self.comparison.baseline
        own, *others = self.lines
        missing = any(place not in own.variants for line in others for place in line.variants)
        otherwise = f", or {self.comparison.baseline} where there is none" if missing else ""
        many = len(self.baselines) > _NAMED
        named = f"of the line {own.name}" if many else ", ".join(self.baselines)
        return f"their baseline of the same {self.comparison.against}{otherwise} ({named})"

    @property
    def environments(self) -> dict[str, dict[str, int]]:
        """By property of the environment, how many runs had which value; dates aside."""
        counted: dict[str, dict[str, int]] = {}
        for run in self.runs.values():
            for name, value in run.environment.items():
                if name != "date":
                    values = counted.setdefault(name, {})
                    values[value] = values.get(value, 0) + 1
        return counted

    def runs_of(self, variant: str) -> dict[int, Run]:
        """The finished runs of a variant by seed."""
        return {seed: run for (name, seed), run in self.runs.items() if name == variant}


def results_of(comparison: Comparison, runs: dict[RunKey, Run | None]) -> Results:
    metrics = [metric_of(name, comparison) for name in comparison.metrics]
    estimates = {
        variant: {metric.name: estimate(_values(runs, variant, metric.name)) for metric in metrics}
        for variant in comparison.variants
    }
    differences, tests = _differences(comparison, metrics, estimates)
    return Results(
        comparison=comparison,
        metrics=metrics,
        runs={key: run for key, run in runs.items() if run is not None},
        unfinished=[key for key, run in runs.items() if run is None],
        estimates=estimates,
        differences=differences,
        tests=tests,
    )


def as_json(results: Results) -> dict[str, Any]:
    """compare.json: seeds whose value is unknown are not among the values.

    "baselines" has what each variant is compared with, where that is not one for all.
    """
    comparison = results.comparison
    baselines = {variant: results.baseline_of[variant] for variant in results.others}
    return {
        "baseline": comparison.baseline,
        **({"baselines": baselines} if comparison.against else {}),
        "seeds": results.comparison.seeds,
        "variants": {
            variant: {
                metric: {
                    "values": {str(seed): value for seed, value in of.values.items()},
                    "mean": of.mean,
                    "sd": of.sd,
                    "n": of.n,
                }
                for metric, of in by_metric.items()
            }
            for variant, by_metric in results.estimates.items()
        },
        "differences": {
            variant: {
                metric: {
                    "mean": of.estimate.mean,
                    "low": of.estimate.low,
                    "high": of.estimate.high,
                    "n": of.estimate.n,
                    "p": of.p,
                }
                for metric, of in by_metric.items()
            }
            for variant, by_metric in results.differences.items()
        },
        "unfinished": [f"{variant}/{seed}" for variant, seed in results.unfinished],
    }


def _values(runs: dict[RunKey, Run | None], variant: str, metric: str) -> dict[int, float]:
    found = {seed: run.value(metric) for (name, seed), run in runs.items() if name == variant and run is not None}
    return {seed: value for seed, value in found.items() if value is not None}


def _differences(
    comparison: Comparison, metrics: list[Metric], estimates: dict[str, dict[str, Estimate]]
) -> tuple[dict[str, dict[str, Difference]], int]:
    """By variant and metric, and how many tests they are."""
    baselines = comparison.baselines()
    pairs = {
        (variant, metric.name): (of[metric.name].values, estimates[baselines[variant]][metric.name].values)
        for variant, of in estimates.items()
        if variant != baselines[variant]
        for metric in metrics
    }
    found = {key: paired(*values) for key, values in pairs.items()}
    # What shared teachers are tested for counts once in Holm's correction.
    test_of = {key: _test(*key, *values) for key, values in pairs.items()}
    p_values = {test_of[key]: p_value(of) for key, of in found.items()}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    smallest = {metric.name: metric.smallest for metric in metrics}
    differences: dict[str, dict[str, Difference]] = {}
    for (variant, metric_name), of in found.items():
        least, test = smallest[metric_name], test_of[variant, metric_name]
        enough = None if least is None else needed(of, least)
        difference = Difference(of, p_values[test], adjusted[test], enough)
        differences.setdefault(variant, {})[metric_name] = difference
    return differences, sum(p is not None for p in p_values.values())


def _test(variant: str, metric: str, values: dict[int, float], baseline: dict[int, float]) -> tuple[object, ...]:
    """What tells one test from another: the same numbers of two variants' teachers are those of one teacher."""
    if metric.startswith("teacher."):
        return metric, tuple(values.items()), tuple(baseline.items())
    return metric, variant


def _line_name(variants: list[str]) -> str:
    """What the variants' names share: their parts between hyphens, or how they begin; that of the first otherwise."""
    parts = [name.split("-") for name in variants]
    shared = "-".join(part for part in parts[0] if all(part in of for of in parts))
    start = "".join(letters[0] for letters in takewhile(lambda x: len(set(x)) == 1, zip(*variants, strict=False)))
    return shared or start.rstrip("-_+=.0") or variants[0]
