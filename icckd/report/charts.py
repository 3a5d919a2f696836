"""Which curves the report shows, in which order, and what a reader should know about each."""

from dataclasses import dataclass, replace
from itertools import cycle

from icckd.methods.intra_class import IntraClass
from icckd.report.figures import Chart, Curve, Style
from icckd.report.reading import number
from icckd.report.results import Results
from icckd.report.wording import images, unit


@dataclass(frozen=True)
class Section:
    """Charts that answer one question, and what a reader should know before."""

    heading: str
    charts: list[Chart]
    text: str = ""


def sections(results: Results) -> list[Section]:
    """The sections for which this run has any values; charts without values are left out."""
    every = [
        Section("Learning curves", _learning(results)),
        Section("Distances within and between classes", _distances(results)),
        Section("Collapse", _collapse(results), _COLLAPSE),
        Section("Margin and intra-class loss", _anchors(results)),
        Section("Soft labels over training", _soft_labels(results)),
    ]
    kept = [replace(section, charts=[chart for chart in section.charts if chart.curves]) for section in every]
    return [section for section in kept if section.charts]


def _learning(results: Results) -> list[Chart]:
    weight = results.settings.get("teacher.loss.weight")
    share = f" + {weight:g} · intra-class loss" if isinstance(weight, (int, float)) and weight > 0 else ""
    return [
        Chart(
            "accuracy",
            "Accuracy",
            f"On the {images(results)}, after each epoch.",
            _both(results, "test_accuracy"),
            percent=True,
        ),
        Chart(
            "teacher-loss",
            "Teacher's training loss",
            f"Total = cross-entropy{share}." if share else "Total, and its terms before their weights.",
            _curves(results, "teacher", _losses(results, "teacher")),
            logarithmic=True,
        ),
        Chart(
            "student-loss",
            "Student's training loss",
            "Total, and its terms before their weights.",
            _curves(results, "student", _losses(results, "student")),
            logarithmic=True,
        ),
        Chart(
            "stage-weights",
            "Weights of the student's stages",
            "How much each one counts in what maps learn: more where both networks find the same images alike.",
            _curves(results, "student", _reported(results, "student", _WEIGHT)),
        ),
    ]


# No two alike among as many losses as a method reports; the last two: a dash and two dots, long dashes.
_STYLES: tuple[Style, ...] = ("-", "--", ":", "-.", (0, (4, 1, 1, 1, 1, 1)), (0, (8, 3)))
# What begins the names of weights among what a step reports.
_WEIGHT = "train_weight_"


def _losses(results: Results, stage: str) -> dict[str, str]:
    """The labels of the losses that a stage's method reports, by key, but for those that have a chart of their own."""
    named = {"train_loss": "total", "train_cross_entropy": "cross-entropy"}
    own = ("train_intra_class", "train_active_fraction", "train_mean_margin") if _has_anchors(results) else ()
    reported = _reported(results, stage, "train_").items()
    return named | {key: of for key, of in reported if key not in (*named, *own) and not key.startswith(_WEIGHT)}


def _reported(results: Results, stage: str, prefix: str) -> dict[str, str]:
    """The labels, by key, of what a stage's history tells under names that begin so."""
    history = results.stages[stage].history if stage in results.stages else []
    keys = (key for record in history for key in record if key.startswith(prefix))
    return {key: key.removeprefix(prefix).replace("_", " ") for key in keys}


def _has_anchors(results: Results) -> bool:
    """Is the teacher's method that of this package, with a margin and the intra-class loss of what exceeds it?"""
    return results.settings.get("teacher.loss.method", IntraClass.name) == IntraClass.name


def _distances(results: Results) -> list[Chart]:
    measured = images(results)
    return [
        Chart(
            "intra-class-distance",
            "Intra-class distance",
            f"Mean cosine distance of two {measured} of one class.",
            _both(results, "intra_class_distance"),
        ),
        Chart(
            "inter-class-distance",
            "Inter-class distance",
            "Mean cosine distance of two classes' mean features.",
            _both(results, "inter_class_distance"),
        ),
        Chart(
            "distance-ratio",
            "Distance ratio",
            "Intra-class / inter-class: the spread within classes relative to that between them.",
            _both(results, "distance_ratio"),
        ),
    ]


_COLLAPSE = (
    "A network that is trained long enough may give all training images of a class nearly one answer: their distance "
    "and the entropy of their soft labels fall towards 0 while the accuracy rises to 100 %, and little is left that a "
    "student could learn besides the classes. Measured on training images as they are, without augmentation."
)


def _collapse(results: Results) -> list[Chart]:
    """How far classes have fallen together where the loss could see them, if training images were asked about."""
    return [
        Chart(
            "training-intra-class-distance",
            "Intra-class distance in training",
            "Mean cosine distance of two training images of one class: 0 where a class is one point.",
            _both(results, "training_intra_class_distance"),
        ),
        Chart(
            "training-distance-ratio",
            "Distance ratio in training",
            "The same over the distance between classes' mean features.",
            _both(results, "training_distance_ratio"),
        ),
        Chart(
            "training-entropy",
            "Soft-label entropy in training",
            "In nats: 0 where the network is certain of every training image.",
            _both(results, "training_soft_label_entropy"),
        ),
        Chart(
            "training-accuracy",
            "Accuracy in training",
            "Of the same images.",
            _both(results, "training_accuracy"),
            percent=True,
        ),
    ]


def _anchors(results: Results) -> list[Chart]:
    space = results.settings.get("teacher.loss.margin_space", "probability")
    has_loss = _has_anchors(results) and results.settings.get("teacher.loss.weight") != 0
    return [
        Chart(
            "active-fraction",
            "Active anchors",
            f"Share of training {unit(results)}s whose margin exceeds δ: the anchors of the intra-class loss.",
            _curves(results, "teacher", {"train_active_fraction": "teacher"}),
            percent=True,
        ),
        Chart(
            "mean-margin",
            "Mean margin",
            f"True class's {space} minus the largest other's, over the training {unit(results)}s.",
            _curves(results, "teacher", {"train_mean_margin": "teacher"}),
            threshold=number(results.settings.get("teacher.loss.margin")),
        ),
        Chart(
            "intra-class-loss",
            "Intra-class loss",
            "Before its weight λ, mean over the active anchors. Lower: they stand out more in their class.",
            _curves(results, "teacher", {"train_intra_class": "teacher"}) if has_loss else [],
        ),
    ]


def _soft_labels(results: Results) -> list[Chart]:
    return [
        Chart(
            "entropy",
            "Soft-label entropy",
            f"Mean over the {images(results)}, in nats.",
            _both(results, "soft_label_entropy"),
        ),
        Chart(
            "calibration",
            "Expected calibration error",
            "Gap between confidence and accuracy; 0 is best.",
            _both(results, "expected_calibration_error"),
            percent=True,
        ),
    ]


def _both(results: Results, key: str) -> list[Curve]:
    return [curve for stage in results.stages for curve in _curves(results, stage, {key: stage})]


def _curves(results: Results, stage: str, labels: dict[str, str]) -> list[Curve]:
    """A curve for every key of `labels` that has a value in any epoch; the later ones dashed, dotted or both."""
    history = results.stages[stage].history if stage in results.stages else []
    curves = []
    styles = cycle(_STYLES)
    for key, label in labels.items():
        # Not every epoch need have been measured; what was and is unknown leaves a gap.
        records = history if key.startswith("train_") else [record for record in history if key in record]
        values = [record.get(key) for record in records]
        if any(value is not None for value in values):
            epochs = [record["epoch"] or 0.0 for record in records]
            curves.append(Curve(label, stage, epochs, values, next(styles)))
    return curves
