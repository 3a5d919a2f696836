"""How a metric is named, how its values and their differences are written, which difference would interest."""

from dataclasses import dataclass

from icckd.report.wording import UNKNOWN
from icckd.settings.comparison import Comparison

_HALF_A_POINT = 0.005  # Gaps below it are within the noise of the field's published tables (this project's choice).

# A metric whose name has one of these words is a share of images: test_accuracy, training_accuracy, recall_at_1,
# fine_probe, class_accuracy_gap, macro_f1; but not a spread of such. Agreement of neighbours is a share less chance.
_SHARES = {"accuracy", "recall", "gap", "probe", "f1"}
# What a metric's own words do not say well.
_NAMES = {
    "fine_probe_soft_labels": "fine probe of soft labels",
    "fine_information_soft_labels": "soft labels' information on fine classes (nats)",
    "neighbour_agreement": "neighbours as the teacher's",
}


@dataclass(frozen=True)
class Metric:
    """A number of summary.json by its dotted name.

    `percent`: whether it is written in per cent, and its differences in points. `smallest`: the smallest difference of
    interest, if there is one.
    """

    name: str
    label: str
    percent: bool
    smallest: float | None

    @property
    def unit(self) -> str:
        """What differences are counted in."""
        return "points" if self.percent else ""

    def value(self, value: float | None) -> str:
        if value is None:
            return UNKNOWN
        return f"{_minus(f'{100 * value:.2f}')} %" if self.percent else self._number(value)

    def difference(self, value: float | None) -> str:
        """With its sign and without its unit."""
        return UNKNOWN if value is None else self._number(value, "+" if value else "")

    def size(self, value: float) -> str:
        """How large a difference is, whichever its sign."""
        return f"{self._number(abs(value))} {self.unit}".rstrip()

    def spread(self, value: float | None) -> str:
        """A standard deviation, without its unit."""
        return UNKNOWN if value is None else self._number(value)

    def between(self, low: float | None, high: float | None) -> str:
        """An interval of differences, without its unit."""
        return UNKNOWN if low is None or high is None else f"{self.difference(low)} to {self.difference(high)}"

    def range(self, low: float | None, high: float | None) -> str:
        """An interval of values."""
        if low is None or high is None:
            return UNKNOWN
        return f"{self.value(low).removesuffix(' %')} to {self.value(high)}"

    def tick(self, value: float) -> str:
        """The label of a value on an axis: as few digits as it needs."""
        return _minus(f"{100 * value:.6g} %" if self.percent else f"{value:.6g}")

    def tick_difference(self, value: float) -> str:
        scaled = 100 * value if self.percent else value
        return _minus(f"{scaled:+.4g}") if value else "0"

    def _number(self, value: float, sign: str = "") -> str:
        """Two decimals of points; else four decimals, or four digits where that is large."""
        if self.percent:
            return _minus(f"{100 * value:{sign}.2f}")
        return _minus(f"{value:{sign}.4f}" if abs(value) < 10 else f"{value:{sign},.4g}")


def metric_of(name: str, comparison: Comparison) -> Metric:
    stage, _, key = name.partition(".")
    words = key.split("_")
    share = not _SHARES.isdisjoint(words) and "spread" not in words
    label = f"{stage.capitalize()}'s {_NAMES.get(key, ' '.join(words))}"
    if "best" in words:
        label += " (at an epoch chosen on the test data)"
    return Metric(
        name=name,
        label=label,
        percent=share or "calibration" in words,
        smallest=comparison.smallest_difference.get(name, _HALF_A_POINT if share else None),
    )


def p_text(p: float | None) -> str:
    if p is None:
        return UNKNOWN
    return f"{p:.3f}" if p >= 0.001 else "≤ 0.001"


def _minus(text: str) -> str:
    return text.replace("-", "−")
