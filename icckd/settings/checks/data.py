"""Rules of the images: how they are read, normalised, varied and divided into batches."""

from collections.abc import Sequence

from icckd.settings.checks.rule import SettingRule
from icckd.settings.definition import AugmentationSettings, DataSettings, Settings

# Beyond it float32 does not hold the square of a signal.
_LARGEST_SIGNAL = 1e18


def data_rules(data: DataSettings) -> list[SettingRule]:
    size, left_out = data.image_size, data.left_out
    return [
        ("data.image_size", size, size is None or 8 <= size <= 1024, "null or in [8, 1024]"),
        ("data.validation", data.validation, 0 <= data.validation < 1, "in [0, 1)"),
        ("data.train_fraction", data.train_fraction, 0 < data.train_fraction <= 1, "in (0, 1]"),
        (
            "data.left_out",
            left_out,
            left_out is None or data.name == "signals",
            f"null for {data.name}: only signals are of people",
        ),
        (
            "data.left_out",
            left_out,
            left_out is None or 0 < len(left_out) == len(set(map(str, left_out))),
            "null, or one name or more, each once",
        ),
        *_statistics_rules(data),
        *_augmentation_rules("data.augmentation", data.augmentation),
        *_augmentation_rules("data.strong_augmentation", data.strong_augmentation),
        *_sampler_rules(data),
        *_streaming_rules(data),
    ]


def _statistics_rules(data: DataSettings) -> list[SettingRule]:
    mean, std = data.mean or [], data.std or []
    rules: list[SettingRule] = [
        ("data.mean", data.mean, (data.mean is None) == (data.std is None), "given where data.std is, or both null"),
    ]
    if data.name == "signals":
        return [
            *rules,
            ("data.mean", mean, all(abs(x) <= _LARGEST_SIGNAL for x in mean), "finite, one per channel"),
            (
                "data.std",
                std,
                all(1 / _LARGEST_SIGNAL <= x <= _LARGEST_SIGNAL for x in std),
                "above 0, one per channel",
            ),
        ]
    return [
        *rules,
        ("data.mean", mean, all(0 <= x <= 1 for x in mean), "in [0, 1], one per channel: pixels are scaled to that"),
        ("data.std", std, all(0.001 <= x <= 1 for x in std), "in [0.001, 1], one per channel, of pixels in [0, 1]"),
    ]


def _augmentation_rules(prefix: str, augmentation: AugmentationSettings) -> list[SettingRule]:
    padding, bounds = augmentation.crop_padding, augmentation.resized_crop
    rules: list[SettingRule] = [
        (f"{prefix}.rotation", augmentation.rotation, 0 <= augmentation.rotation <= 180, "in [0, 180] degrees"),
    ]
    if padding is not None:
        rules.append((f"{prefix}.crop_padding", padding, padding >= 0, "null, or 0 or more"))
    if bounds is not None:
        areas = len(bounds) == 2 and 0 < bounds[0] <= bounds[1] <= 1
        rules += [
            (f"{prefix}.resized_crop", bounds, areas, "null, or two fractions [low, high] with 0 < low <= high <= 1"),
            (f"{prefix}.crop_padding", padding, not padding, f"null or 0 beside {prefix}.resized_crop"),
        ]
    return rules


def _sampler_rules(data: DataSettings) -> list[SettingRule]:
    classes, samples = data.classes_per_batch, data.samples_per_class
    balanced = data.sampler == "class-balanced"
    return [
        ("data.classes_per_batch", classes, classes is None or balanced, "null beside data.sampler random"),
        ("data.classes_per_batch", classes, classes is None or classes >= 2, "null, or 2 or more"),
        ("data.samples_per_class", samples, samples is None or balanced, "null beside data.sampler random"),
        ("data.samples_per_class", samples, samples is None or samples >= 1, "null, or 1 or more"),
    ]


def _streaming_rules(data: DataSettings) -> list[SettingRule]:
    streaming, workers = data.streaming, data.workers
    possible = data.name == "image-folder" or not streaming
    return [
        ("data.streaming", streaming, possible, f"false for {data.name}: only an image-folder is streamed"),
        ("data.workers", workers, workers is None or streaming, "null without data.streaming"),
        ("data.workers", workers, workers is None or 0 <= workers <= 1024, "null, or in [0, 1024]"),
    ]


def class_augmentation_rules(settings: Settings, stages: Sequence[str]) -> list[SettingRule]:
    prefix, tried = "data.class_augmentation", settings.data.class_augmentation
    epochs, areas = tried.epochs, tried.areas
    rules: list[SettingRule] = [
        (f"{prefix}.classes", tried.classes, tried.classes >= 0, "0 or more"),
        (f"{prefix}.areas", areas, all(0 < area <= 1 for area in areas), "fractions in (0, 1]"),
        (f"{prefix}.holdout", tried.holdout, 0 < tried.holdout < 1, "between 0 and 1"),
        (f"{prefix}.epochs", epochs, epochs is None or epochs >= 1, "null, or 1 or more"),
    ]
    if tried.classes == 0:
        return rules
    crop, warmup = settings.data.augmentation.resized_crop, settings.teacher.warmup_epochs
    milder = crop is not None and len(crop) == 2 and len(tried.tried(crop)) > 1
    beside = f"where {prefix}.classes is above 0"
    return [
        *rules,
        ("data.augmentation.resized_crop", crop, crop is not None, f"two fractions, the strongest crop, {beside}"),
        (f"{prefix}.areas", areas, milder, f"fractions of which one lies above the lower bound of {crop}"),
        (f"{prefix}.epochs", epochs, epochs is None or epochs >= warmup, f"teacher.warmup_epochs, {warmup}, or more"),
        ("teacher.weights", settings.teacher.weights, "teacher" in stages, f"null {beside}: teachers are trained"),
    ]
