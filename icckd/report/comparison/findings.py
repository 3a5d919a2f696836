"""What can and cannot be concluded at this number of seeds, in words."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from icckd.report.comparison.metrics import Metric, p_text
from icckd.report.comparison.results import Difference, Results
from icckd.report.comparison.statistics import LEVEL, MOST_SEEDS, POWER, Needed
from icckd.report.wording import UNKNOWN

_NAMED_RUNS = 5
_NAMED_VARIANTS = 3
_NAMED = 5  # Of lines, and of variants of which one verdict holds.


@dataclass(frozen=True)
class Finding:
    """What holds for some variants: their names, the verdict in a few words, and what it rests on."""

    variants: tuple[str, ...]
    verdict: str
    reasons: str


def title(results: Results) -> str:
    comparison, others = results.comparison, results.others
    data = " and ".join(sorted({settings.data.shown_name for settings in comparison.variants.values()}))
    if len(results.baselines) > 1:
        own, *lines = [line.name for line in results.lines]
        who = listed(lines) if len(lines) <= _NAMED else f"{len(lines)} lines of variants"
        return f"{who} against {own} by {comparison.against} on {data}"
    who = ", ".join(others) if len(others) <= _NAMED_VARIANTS else f"{len(others)} variants"
    return f"{who} against {comparison.baseline} on {data}" if others else f"{comparison.baseline} alone on {data}"


def overview(results: Results) -> list[str]:
    """How much there is to go by."""
    return [sentence for sentence in (_finished(results), _several(results)) if sentence]


def at_a_glance(results: Results, metric: Metric) -> str:
    """Which variants are higher, lower, or not told apart, and how many seeds would be enough, in a line or two.

    Of many that are apart those with the largest differences are named, of others how many there are.
    """
    verdicts: dict[tuple[int, str], list[str]] = {}
    for variant, of in results.differences.items():
        difference = of[metric.name]
        baseline = results.baseline_of[variant] if len(results.baselines) == 1 else "their baselines"
        verdict = _finding(variant, metric, difference, baseline, results.tests).verdict
        verdict += ", though not after Holm's correction" if difference.is_apart and not difference.stands else ""
        verdicts.setdefault((2 - difference.is_apart - difference.stands, verdict), []).append(variant)
    sentences = [
        f"{verdict}: {_counted(variants) if doubt == 2 else _sized(variants, results, metric)}"
        for (doubt, verdict), variants in sorted(verdicts.items(), key=lambda of: of[0][0])
    ]
    return f"{'; '.join(sentences)}.{_at_least(results, metric)}"


def _counted(variants: list[str]) -> str:
    return listed(variants) if len(variants) <= _NAMED else f"{len(variants)} variants"


def _sized(variants: list[str], results: Results, metric: Metric) -> str:
    """The variants with their differences: where they are many, the largest ones."""
    means = {variant: results.differences[variant][metric.name].estimate.mean or 0.0 for variant in variants}
    named = sorted(variants, key=lambda variant: -abs(means[variant]))[:_NAMED]
    sizes = {variant: f"{metric.difference(means[variant])} {metric.unit}".rstrip() for variant in means}
    shown = [f"{variant} ({sizes[variant]})" for variant in variants if variant in named]
    return listed(shown + ([f"{len(variants) - len(named)} more"] if len(variants) > len(named) else []))


def findings(results: Results, metric: Metric) -> list[Finding]:
    """What holds for every variant but the baseline; those of which the same holds are one finding."""
    found: dict[tuple[str, str], list[str]] = {}
    for variant, of in results.differences.items():
        finding = _finding(variant, metric, of[metric.name], results.baseline_of[variant], results.tests)
        found.setdefault((finding.verdict, finding.reasons), []).append(variant)
    return [Finding(tuple(variants), *said) for said, variants in found.items()]


def notes(results: Results) -> list[str]:
    """What a reader must know to judge the numbers."""
    found = [
        "Accuracies are those after the last epoch. Differences are paired by seed; intervals are 95 % t-intervals of "
        "the mean, p is two-sided.",
        "Seeds vary the networks' first weights, the order of images and the augmentation, not the data: what holds "
        "here need not hold for other data.",
    ]
    if any(of.needed is not None for by_metric in results.differences.values() for of in by_metric.values()):
        found.append(
            f"How many seeds a difference takes, with {100 * POWER:.0f} % power, is reckoned from how far the "
            "differences spread here; as that is uncertain, the tables give ranges."
        )
    held_out = sorted({settings.data.validation for settings in results.comparison.variants.values()} - {0.0})
    if held_out:
        shares = " or ".join(f"{100 * share:g} %" for share in held_out)
        found.append(f"Measured on {shares} of {_held_out_of(results)}, held out, not on the test set.")
    return [*found, *_machines(results)]


def _held_out_of(results: Results) -> str:
    signals = any(settings.data.name == "signals" for settings in results.comparison.variants.values())
    return "the people to train on" if signals else "the training images"


def seeds_text(needed: Needed | None) -> str:
    """How many seeds are needed, and in which range that lies: "12 (6 to 40)"."""
    if needed is None:
        return UNKNOWN
    seeds, least, most = (f"> {MOST_SEEDS}" if n is None else str(n) for n in astuple(needed))
    return seeds if least == most else f"{seeds} ({least} to {most})"


def listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _finished(results: Results) -> str:
    variants, seeds = len(results.comparison.variants), len(results.comparison.seeds)
    runs = variants * seeds
    sentence = f"{_count(variants, 'variant')} with {_count(seeds, 'seed')} each: "
    if not results.unfinished:
        return f"{sentence}all {runs} runs are finished." if runs > 1 else f"{sentence}the run is finished."
    missing = [f"{variant}/{seed}" for variant, seed in results.unfinished[:_NAMED_RUNS]]
    more = len(results.unfinished) - len(missing)
    missing += [f"{more} more"] if more else []
    are = "is" if len(results.unfinished) == 1 else "are"
    return f"{sentence}{runs - len(results.unfinished)} of {runs} runs are finished; {listed(missing)} {are} not."


def _several(results: Results) -> str:
    tests = results.tests
    if not results.others:
        return "There is one variant only, so nothing is compared."
    if tests < 2:
        return ""
    chance = 1 - LEVEL**tests
    return (
        f"{tests} differences to {results.baseline_in_words} are tested. Were none of them real, and the tests "
        f"independent, at least one would still have p below 0.05 with a chance of {100 * chance:.0f} %; p after "
        "Holm's correction holds that chance at 5 %."
    )


def _finding(variant: str, metric: Metric, difference: Difference, baseline: str, tests: int) -> Finding:
    found = difference.estimate
    if found.mean is None or found.low is None or found.high is None:
        shared = "no finished pair of runs has" if found.n == 0 else "only one finished pair of runs has"
        reasons = f": {shared} this value, and an interval needs at least two."
        return Finding((variant,), "nothing can be concluded", reasons)
    if difference.p is None and found.mean == 0:
        return Finding((variant,), f"the same as {baseline}", f" with each of {found.n} seeds.")
    if difference.p is None:
        reasons = f": {metric.difference(found.mean)} with each of {found.n} seeds, and no test without any spread."
        return Finding((variant,), f"not tested against {baseline}", reasons)
    direction = "higher" if found.mean > 0 else "lower"
    interval = f"95 % interval {metric.between(found.low, found.high)} {metric.unit}".rstrip()
    numbers = f"{interval}, {_equals(difference.p)}, {found.n} pairs"
    if difference.is_apart:
        reasons = f" by {metric.size(found.mean)} ({numbers}){_corrected(difference, tests)}"
        return Finding((variant,), f"{direction} than {baseline}", reasons)
    reasons = (
        f": {metric.difference(found.mean)} ({numbers}). The interval rules out more than {metric.size(found.high)} "
        f"higher and more than {metric.size(found.low)} lower.{_enough(metric, difference)}"
    )
    verdict = f"not told apart from {baseline}"
    if metric.smallest is not None and _settled(metric, difference):
        verdict = f"no difference from {baseline} as large as {metric.size(metric.smallest)}"
    return Finding((variant,), verdict, reasons)


def _settled(metric: Metric, difference: Difference) -> bool:
    """Does the interval rule out every difference that would interest?"""
    low, high = difference.estimate.low, difference.estimate.high
    return metric.smallest is not None and low is not None and high is not None and max(-low, high) < metric.smallest


def _equals(p: float) -> str:
    text = p_text(p)
    return f"p {text}" if text.startswith("≤") else f"p = {text}"


def _corrected(difference: Difference, tests: int) -> str:
    if difference.adjusted is None or tests < 2:
        return "."
    if difference.stands:
        return f". It stands after Holm's correction ({_equals(difference.adjusted)})."
    return (
        f". It does not stand after Holm's correction ({_equals(difference.adjusted)}): a hint that further seeds "
        "should confirm."
    )


def _enough(metric: Metric, difference: Difference) -> str:
    """How many seeds the smallest difference of interest needs."""
    if metric.smallest is None:
        return ""
    if _settled(metric, difference):
        return f" Both are less than the {metric.size(metric.smallest)} that would interest."
    if difference.needed is None:
        return ""
    return f" To find {metric.size(metric.smallest)} takes {_seeds(difference.needed)}."


def _at_least(results: Results, metric: Metric) -> str:
    """How many seeds the smallest difference of interest needs, over the variants that it is open for."""
    differences = [of[metric.name] for of in results.differences.values()]
    needed = [difference.needed for difference in differences if not _settled(metric, difference)]
    seeds = [MOST_SEEDS + 1 if of.seeds is None else of.seeds for of in needed if of is not None]
    if metric.smallest is None or not seeds:
        return ""
    least, most = min(seeds), max(seeds)
    about = f"more than {MOST_SEEDS}" if most > MOST_SEEDS else f"about {most}"
    if least < most:
        about = f"{least} to {about.removeprefix('about ')}"
    return f" To find a difference of {metric.size(metric.smallest)} takes {about} seeds."


def _seeds(needed: Needed) -> str:
    """How many seeds are needed, in words."""
    if needed.at_least is None:
        return f"more than {MOST_SEEDS} seeds"
    about = f"more than {MOST_SEEDS} seeds" if needed.seeds is None else f"about {needed.seeds} seeds"
    if needed.at_most is None:
        return f"{about}, but how far the differences spread is uncertain: {needed.at_least} at least"
    if needed.at_least == needed.at_most:
        return about
    return f"{about}, between {needed.at_least} and {needed.at_most} as their spread is itself uncertain"


def _machines(results: Results) -> list[str]:
    differing = [name for name, values in results.environments.items() if len(values) > 1]
    if not differing:
        return []
    return [
        f"The runs were computed in different environments ({listed(differing)}): the same seed then need not "
        "give the same numbers, and times cannot be compared."
    ]


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
