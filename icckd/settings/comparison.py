"""What `icckd compare` compares: the definition that a YAML file holds, read, checked and written again."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from icckd.errors import UserError
from icckd.settings.definition import STAGES, Settings
from icckd.settings.names import flat, refuse_renamed, shown
from icckd.settings.resolution import settings_from

_KEYS = ("base", "variants", "baseline", "against", "seeds", "metrics", "smallest_difference")
_METRICS = ("student.test_accuracy", "teacher.test_accuracy", "teacher.distance_ratio")
_METRIC = re.compile(rf"({'|'.join(STAGES)})\.[a-z][a-z0-9_]*")
# What a folder may be called wherever the comparison is taken.
_NAME = re.compile(r"[A-Za-z0-9._+=-]{1,100}")
# What is one for all runs of a comparison.
_SHARED = ("device",)

# Where a variant lies on what the metrics are drawn against: at a number, or in the group of a text.
Place = float | str


@dataclass(frozen=True)
class Comparison:
    """Variants of one run, each with every seed, and what is compared between them.

    Args:
        variants: The settings of each by name, whole, in the order of the file; their seed is none of the runs'.
        baseline: The variant that the others are compared with.
        seeds: The seeds that every variant runs with.
        metrics: Numbers of summary.json by dotted name, "student.test_accuracy".
        smallest_difference: By metric, the smallest difference that would interest; those not given are not in it.
        against: A setting of numbers or texts that the metrics are drawn against. Variants that differ in nothing else
            are one line, and a variant is compared with that of the baseline's line at the same value.
    """

    variants: dict[str, Settings]
    baseline: str
    seeds: list[int]
    metrics: list[str] = field(default_factory=lambda: list(_METRICS))
    smallest_difference: dict[str, float] = field(default_factory=dict)
    against: str | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """What every run trains: the teacher alone where every metric is of it."""
        return STAGES if any(metric.startswith("student.") for metric in self.metrics) else STAGES[:1]

    def settings(self, variant: str, seed: int) -> Settings:
        """The settings of one run."""
        return replace(self.variants[variant], seed=seed)

    def differing(self) -> dict[str, dict[str, Any]]:
        """The settings in which the variants are not all alike: by variant, values by dotted name."""
        values = {name: flat(asdict(settings)) for name, settings in self.variants.items()}
        first = next(iter(values.values()))
        # What is written alike is alike: not a number, too.
        names = [name for name in first if len({repr(of[name]) for of in values.values()}) > 1]
        return {variant: {name: of[name] for name in names} for variant, of in values.items()}

    def places(self) -> dict[str, Place]:
        """Where each variant lies on `against`, in the order of the file: at numbers if all have one, else at texts."""
        values = {variant: settings[str(self.against)] for variant, settings in self.differing().items()}
        numbers = {variant: place_of(value) for variant, value in values.items()}
        if None in numbers.values():
            return {variant: shown(value) for variant, value in values.items()}
        return {variant: number for variant, number in numbers.items() if number is not None}

    @property
    def by_text(self) -> bool:
        """Are the metrics drawn against texts?"""
        return self.against is not None and any(isinstance(place, str) for place in self.places().values())

    def order(self) -> list[Place]:
        """The places that there are: numbers by size, texts in the order of the file."""
        order = list(dict.fromkeys(self.places().values()))
        return order if self.by_text else sorted(order, key=float)

    def lines(self) -> list[dict[Place, str]]:
        """The variants of each line by their value of `against`, the baseline's line first; none without `against`.

        With texts, settings that agree wherever the text does, as those of a method that it names, are no other
        difference.
        """
        if self.against is None:
            return []
        places, order, own = self.places(), self.order(), {self.against}
        if self.by_text:
            own |= _going_with(places, self.differing())
        found: dict[str, dict[Place, str]] = {}
        for variant, settings in self.differing().items():
            others = repr({name: value for name, value in settings.items() if name not in own})
            found.setdefault(others, {})[places[variant]] = variant
        ordered = sorted(found.values(), key=lambda line: self.baseline not in line.values())
        return [dict(sorted(line.items(), key=lambda of: order.index(of[0]))) for line in ordered]

    def baselines(self) -> dict[str, str]:
        """What each variant is compared with: itself where it is the baseline, or one of the baseline's line."""
        lines = self.lines()
        if len(lines) < 2:
            return dict.fromkeys(self.variants, self.baseline)
        found = {name: lines[0].get(place, self.baseline) for line in lines for place, name in line.items()}
        return {variant: found[variant] for variant in self.variants}

    def definition(self) -> dict[str, Any]:
        """What `comparison_from` makes this comparison of again: every setting, as dicts, lists and plain values."""
        differing = self.differing()
        own = {"seed", *next(iter(differing.values()))}
        base = flat(asdict(next(iter(self.variants.values()))))
        return {
            "base": {name: value for name, value in base.items() if name not in own},
            "variants": differing,
            "baseline": self.baseline,
            "seeds": list(self.seeds),
            "metrics": list(self.metrics),
            "smallest_difference": dict(self.smallest_difference),
            "against": self.against,
        }


def read_comparison(
    path: Path, overrides: Mapping[str, Any] | None = None, seeds: Sequence[int] | None = None
) -> Comparison:
    """The comparison that the YAML file `path` defines; `comparison_from` has the rest. Raises UserError."""
    try:
        return comparison_from(yaml.load(path.read_text(encoding="utf-8"), _Loader), str(path), overrides, seeds)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not readable YAML: {' '.join(str(error).split())[:160]}") from error


class _Loader(yaml.SafeLoader):
    """YAML's, to which a name that is given twice is an error: the first of two variants would silently be lost."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        found = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in found:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                found.add(key.value)
        return node


def comparison_from(
    values: Any,
    source: str,
    overrides: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
) -> Comparison:
    """The comparison that `values` of `source` defines: a mapping with the keys of `Comparison`, and base.

    `overrides`, settings by dotted name, are laid over its base and under its variants; `seeds`, if given, replace its
    own. Raises UserError that names `source` and the key.
    """
    values = _mapping(values, source)
    for key in values:
        if key not in _KEYS:
            raise UserError(f"{source}: {key} is no key of a comparison; {_known(key)}")
    for key in ("variants", "baseline"):
        if key not in values:
            raise UserError(f"{source}: {key} is missing; {_known(key)}")
    base = _given(values.get("base"), f"{source}: base")
    # A wrong name in it is its own, no variant's; a preset may want what only variants give.
    settings_from({name: value for name, value in base.items() if name != "preset"}, f"{source}: base")
    base |= dict(overrides or {})
    variants = _variants(values["variants"], base, source)
    baseline = values["baseline"]
    if not isinstance(baseline, str) or baseline not in variants:
        raise UserError(f"{source}: baseline is {baseline!r}; it should be one of {', '.join(variants)}")
    metrics = _metrics(values.get("metrics", list(_METRICS)), source)
    comparison = Comparison(
        variants=variants,
        baseline=baseline,
        seeds=_seeds(values.get("seeds") if seeds is None else list(seeds), source),
        metrics=metrics,
        smallest_difference=_smallest(values.get("smallest_difference"), metrics, source),
        against=values.get("against"),
    )
    _check_against(comparison, source)
    return comparison


def place_of(value: Any) -> float | None:
    """Where a setting's value lies on an axis: a finite number, that after a colon, the first of a list; null is 0.

    None where it is nothing of the kind.
    """
    if isinstance(value, list) and value:
        return place_of(value[0])
    with suppress(ValueError):
        place = float(str(value).rpartition(":")[2]) if value is not None else 0.0
        return place if math.isfinite(place) else None
    return None


def _going_with(places: Mapping[str, Place], differing: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The settings whose values are known where the variant's place is."""

    def pairs(name: str) -> set[tuple[Place, str]]:
        return {(places[variant], repr(settings[name])) for variant, settings in differing.items()}

    values = set(places.values())
    return {name for settings in differing.values() for name in settings if len(pairs(name)) == len(values)}


def _check_against(comparison: Comparison, source: str) -> None:
    against = comparison.against
    if against is None:
        return
    for settings in comparison.differing().values():
        if not isinstance(against, str) or against not in settings:
            raise UserError(
                f"{source}: against is {against!r}; it should be a setting in which the variants differ: "
                f"{', '.join(settings) or 'there is none'}"
            )
    kept = {variant for line in comparison.lines() for variant in line.values()}
    for variant, place in comparison.places().items():
        if variant not in kept:
            raise UserError(
                f"{source}: against is {against}, but two variants of one line lie at {place} on it: one is {variant}"
            )


def _known(key: str) -> str:
    near = get_close_matches(key, [known for known in _KEYS if known != key], n=1)
    return f"did you mean {near[0]}?" if near else f"the keys are {', '.join(_KEYS)}"


def _mapping(values: Any, where: str) -> dict[str, Any]:
    """`values`, checked to be a mapping of names; a null is an empty one."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise UserError(f"{where} should hold names and values, not {type(values).__name__}")
    for name in values:
        if not isinstance(name, str):
            raise UserError(f"{where}: the name {name!r} is read as {type(name).__name__}; put it in quotes")
    return dict(values)


def _given(values: Any, where: str) -> dict[str, Any]:
    """The settings that `values` gives, by dotted name, in whichever form they stand there."""
    values = _mapping(values, where)
    _check_nested(values, where)
    refuse_renamed(values, where)
    found: dict[str, Any] = {}
    for name, value in values.items():
        for dotted, each in flat({name: value}).items():
            if dotted in found:
                raise UserError(f"{where}: {dotted} is given twice")
            found[dotted] = each
    if "seed" in found:
        raise UserError(f"{where}: seed is given; the seeds of a comparison are its key seeds")
    return found


def _check_nested(values: dict[str, Any], where: str) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            _check_nested(_mapping(value, f"{where}.{name}"), f"{where}.{name}")


def _variants(values: Any, base: dict[str, Any], source: str) -> dict[str, Settings]:
    variants = _mapping(values, f"{source}: variants")
    if not variants:
        raise UserError(f"{source}: variants is empty; give at least one, by name")
    folders: dict[str, str] = {}
    for name in variants:
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise UserError(
                f"{source}: variants: {name!r} cannot be a folder's name everywhere; use up to 100 letters, digits and "
                "._-+="
            )
        if folders.setdefault(name.lower(), name) != name:
            raise UserError(f"{source}: variants: {folders[name.lower()]} and {name} differ in case alone")
    given = {name: base | _variant(value, f"{source}: variants.{name}") for name, value in variants.items()}
    _check_presets(given, source)
    return {name: settings_from(value, f"{source}: variants.{name}") for name, value in given.items()}


def _variant(values: Any, where: str) -> dict[str, Any]:
    given = _given(values, where)
    for name in _SHARED:
        if name in given:
            raise UserError(f"{where}: {name} is given; it is one for all runs: give it in base")
    return given


def _check_presets(given: dict[str, dict[str, Any]], source: str) -> None:
    """Raise UserError where one variant has the preset paper and another fast: no table should have both."""
    presets = {str(values.get("preset")): name for name, values in given.items()}
    if "paper" in presets and "fast" in presets:
        raise UserError(
            f"{source}: variants: {presets['paper']} has the preset paper and {presets['fast']} has fast; "
            "they are never compared in one table: give all one preset"
        )


def _seeds(values: Any, source: str) -> list[int]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{source}: seeds should be a list of whole numbers, not {values!r}")
    for seed in values:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise UserError(f"{source}: seeds holds {seed!r}; each should be a whole number in [0, 2^63)")
    twice = next((seed for seed in values if values.count(seed) > 1), None)
    if twice is not None:
        raise UserError(f"{source}: seeds holds {twice} twice; give each once")
    return values


def _metrics(values: Any, source: str) -> list[str]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{source}: metrics should be a list of names, not {values!r}")
    for metric in values:
        if not isinstance(metric, str) or not _METRIC.fullmatch(metric):
            raise UserError(
                f"{source}: metrics holds {metric!r}; each should be a number of summary.json with its stage before "
                "it, as in student.test_accuracy"
            )
        if values.count(metric) > 1:
            raise UserError(f"{source}: metrics holds {metric} twice; give each once")
    return values


def _smallest(values: Any, metrics: list[str], source: str) -> dict[str, float]:
    where = f"{source}: smallest_difference"
    found = {}
    for metric, value in flat(_mapping(values, where)).items():
        if metric not in metrics:
            raise UserError(f"{where}: {metric} is none of the metrics; they are {', '.join(metrics)}")
        if isinstance(value, str):  # As YAML reads 5e-3, which has no point.
            with suppress(ValueError):
                value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= sys.float_info.max:
            raise UserError(f"{where}.{metric} is {value!r}; it should be a number above 0")
        found[metric] = float(value)
    return found
