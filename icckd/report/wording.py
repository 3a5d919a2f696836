"""What both pages say, as plain text: title, main numbers, findings, notes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from icckd.methods import StudentProcedure
from icckd.report.made import MadeImages
from icckd.report.reading import number
from icckd.report.results import Results, student_methods
from icckd.settings import STAGES, methods_of, setting_name, shown_name

UNKNOWN = "–"


@dataclass(frozen=True)
class Measure:
    """A row of a table: its name in summary.json or model.json, and how to read it."""

    key: str
    label: str
    meaning: str
    form: Callable[[float], str]


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def decimal(value: float) -> str:
    return f"{value:.4f}"


def formatted(value: float | None, form: Callable[[float], str]) -> str:
    return UNKNOWN if value is None else form(value)


def title(results: Results) -> str:
    archs = {name: stage.arch for name, stage in results.stages.items()}
    data = data_name(results)
    if len(archs) == 2:
        methods = student_methods(results)
        how = f"distilled from {archs['teacher']} by {' + '.join(methods)}" if methods else "trained without a teacher"
        if _teacher_is_not_asked(results):
            how = f"trained by {' + '.join(methods)}"
        return f"{archs['student']} {how} on {data}"
    return f"{''.join(archs.values()) or 'An empty run'} on {data}"


def measures(results: Results) -> list[Measure]:
    """The rows of the main table."""
    classes, each = len(results.classes), unit(results)
    certain = "mean, in nats: 0 where every answer is certain"
    if classes:
        certain += f", {math.log(classes):.2f} where all {classes} classes are equally likely"
    return [
        Measure("test_accuracy", "Accuracy", f"of {images(results)}, after the last epoch", percent),
        Measure("macro_f1", "Macro F1", "mean over classes of 2PR/(P + R), of precision P and recall R", percent),
        Measure("worst_class_accuracy", "Worst class", "accuracy of the hardest class", percent),
        Measure("class_accuracy_gap", "Gap of classes", "accuracy of the easiest class less the hardest's", percent),
        Measure(
            "class_accuracy_spread",
            "Spread of classes",
            "standard deviation of their accuracies over the mean",
            decimal,
        ),
        Measure("recall_at_1", "Recall at 1", f"nearest other {each} by cosine is of the same class", percent),
        Measure("intra_class_distance", "Intra-class distance", f"mean 1 − cosine of two {each}s of a class", decimal),
        Measure("inter_class_distance", "Inter-class distance", "mean 1 − cosine of two class means", decimal),
        Measure("distance_ratio", "Distance ratio", "intra-class / inter-class", decimal),
        Measure("soft_label_entropy", "Soft-label entropy", certain, decimal),
        Measure(
            "expected_calibration_error", "Calibration error", "mean gap of confidence and accuracy, 15 bins", percent
        ),
        Measure(
            "best_test_accuracy",
            f"Best epoch, chosen on {images(results)}",
            "flatters, so never the headline, nor to be compared with last epochs",
            percent,
        ),
        *_measured(_ROBUST_MEASURES, results),
        *(() if has_fine_numbers(results) else _measured(_TAUGHT_MEASURES, results)),
        *_measured(_TRAINING_MEASURES, results),
        Measure("parameters", "Parameters", "trained numbers in the network", lambda value: f"{value:,.0f}"),
        Measure("seconds", "Training time", "evaluation after each epoch included", duration),
    ]


def has_fine_numbers(results: Results) -> bool:
    """Were networks asked about finer classes than theirs? A section of its own then has what they said."""
    return any(key.startswith("fine_") for stage in results.stages.values() for key in stage.measures)


def _measured(several: tuple[Measure, ...], results: Results) -> tuple[Measure, ...]:
    """`several`, where any stage has any of them."""
    return several if any(m.key in stage.measures for stage in results.stages.values() for m in several) else ()


_ROBUST_MEASURES = (
    Measure("robust_accuracy", "Robust accuracy", "of the same images, attacked", percent),
    Measure("worst_class_robust_accuracy", "Worst class, attacked", "robust accuracy of the hardest class", percent),
    Measure(
        "robust_accuracy_spread",
        "Spread of classes, attacked",
        "standard deviation of robust accuracies over the mean",
        decimal,
    ),
)
_TAUGHT_MEASURES = (
    Measure(
        "neighbour_agreement",
        "Neighbours as the teacher's",
        "of the 5 nearest of the same class; 0: as by chance, 1: the same",
        decimal,
    ),
)
_TRAINING_MEASURES = (
    Measure("training_accuracy", "Accuracy in training", "of training images as they are", percent),
    Measure(
        "training_distance_ratio", "Distance ratio in training", "of the same: near 0 where classes collapse", decimal
    ),
    Measure("training_soft_label_entropy", "Soft-label entropy in training", "of the same, in nats", decimal),
)


def images(results: Results) -> str:
    """What the networks were measured on."""
    held_out = results.settings.get("data.validation")
    kind = "validation" if isinstance(held_out, (int, float)) and held_out > 0 else "test"
    return f"{kind} {unit(results)}s"


def unit(results: Results) -> str:
    """What the data are made of."""
    return "window" if results.settings.get("data.name") == "signals" else "image"


def data_name(results: Results) -> str:
    """What the data set is called."""
    name, root, labels = (results.settings.get(f"data.{of}") for of in ("name", "root", "labels"))
    return "unknown data" if name is None else shown_name(str(name), root, labels)


def findings(results: Results) -> list[str]:
    """What the numbers say, a sentence or two each."""
    sentences = [_accuracy(results), _distances(results)]
    return [sentence for sentence in sentences if sentence]


def notes(results: Results) -> list[str]:
    """What a reader must know to judge the numbers."""
    found = []
    for name, stage in results.stages.items():
        if stage.measures.get("test_accuracy") is None:
            found.append(f"The {name}'s training has not finished; {len(stage.history)} epochs are shown.")
        skipped = stage.history[-1].get("skipped_steps") if stage.history else None
        if skipped:
            found.append(f"{skipped:.0f} training steps of the {name} were skipped: their loss was not finite.")
    for name in STAGES:
        if name not in results.stages:
            found.append(f"This run has no {name}.")
    epochs = number(results.settings.get("student.epochs"))
    for method in student_methods(results):
        warmup = number(results.settings.get(f"student.loss.{setting_name(method)}.warmup_epochs"))
        if "student" in results.stages and epochs and warmup and warmup > epochs:
            found.append(
                f"{method}'s weight rises over {warmup:g} epochs and so ended, after {epochs:g}, at "
                f"{epochs / warmup:.2g} of what is set."
            )
    weights = results.settings.get("teacher.weights")
    if weights and "teacher" in results.stages:
        found.append(f"The teacher was not trained here but read from {weights}.")
    if "student" in results.stages and _teacher_is_not_asked(results):
        found.append("The student's training asks the teacher nothing.")
    if results.made_images is not None:
        found.append(_made(results.made_images))
    if images(results).startswith("validation"):
        held_out = 100 * results.settings["data.validation"]
        of = "training images" if unit(results) == "image" else "people to train on"
        found.append(f"Measured on {held_out:g} % of the {of}, held out, not on the test {unit(results)}s.")
    if data_name(results) == "synthetic signals":
        found.append("The signals are synthetic: they are made by a formula and tell nothing of people.")
    found.append("One run with one seed: small differences can be chance.")
    return found


def _teacher_is_not_asked(results: Results) -> bool:
    procedures = methods_of(StudentProcedure)
    return any(name in procedures and not procedures[name].asks_teacher for name in student_methods(results))


def _made(found: MadeImages) -> str:
    images = "Images" if found.made is None else f"{found.made:,.0f} images"
    sentence = f"{images} were made for the student, which saw none of the data set's to learn from."
    if not len(found.images):
        return sentence
    sure = percent(found.confidences.double().mean().item())
    return f"{sentence} Of the latest of each class the teacher's probability of that class is {sure} on average."


def _accuracy(results: Results) -> str:
    stages, measured = results.stages, images(results)
    accuracy = {name: stage.measures.get("test_accuracy") for name, stage in stages.items()}
    teacher, student = accuracy.get("teacher"), accuracy.get("student")
    if teacher is None or student is None:
        known = [(name, value) for name, value in accuracy.items() if value is not None]
        return "".join(f"The {name} names {percent(value)} of the {measured} correctly." for name, value in known)
    points = 100 * (student - teacher)
    against = "as many as its teacher" if abs(points) < 0.005 else _points(points)
    sentence = f"The student names {percent(student)} of the {measured} correctly, {against}"
    sizes = [stages[name].measures.get("parameters") for name in STAGES]
    if sizes[0] and sizes[1] and sizes[0] > sizes[1]:
        sentence += f", with {sizes[0] / sizes[1]:.1f} times fewer parameters"
    return sentence + "."


def _points(points: float) -> str:
    return f"{abs(points):.2f} percentage points {'more' if points > 0 else 'less'} than its teacher"


def _distances(results: Results) -> str:
    if "teacher" not in results.stages:
        return ""
    values = results.stages["teacher"].measures
    intra, inter, ratio = (
        values.get(name) for name in ("intra_class_distance", "inter_class_distance", "distance_ratio")
    )
    if intra is None or inter is None or ratio is None:
        return ""
    sentence = (
        f"The teacher's features differ by {intra:.3f} within a class and by {inter:.3f} between classes, a ratio of "
        f"{ratio:.3f}."
    )
    weight = results.settings.get("teacher.loss.weight")
    if results.settings.get("teacher.weights") or not isinstance(weight, (int, float)):
        return sentence
    if weight == 0:
        return sentence + " It was trained with cross-entropy alone (λ = 0): a baseline for teachers with λ > 0."
    return (
        f"{sentence} The intra-class loss (λ = {weight:g}) is there to raise that ratio: compare with a run without it."
    )
