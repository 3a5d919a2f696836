"""How the networks of a run were trained, in words: what is in force, where settings may only say null."""

from dataclasses import asdict
from typing import Any

from icckd.report.reading import number
from icckd.report.results import Results
from icckd.report.wording import data_name, unit
from icckd.settings import Settings, flat
from icckd.settings.names import shown

# How steps are computed, where a setting says so.
_WAYS = {
    "channels_last": "channels last",
    "compile": "compiled",
    "cuda_graph": "captured in a CUDA graph",
    "autocast": "bfloat16",
}


def recipe(results: Results) -> list[tuple[str, str]]:
    """What is in force, by name, of the images and of each network that was trained here; what is known of it."""
    rows = [
        (f"Training {unit(results)}s", _images(results)),
        ("People", _people(results)),
        ("Labels", _labels(results)),
        ("Label noise", _label_noise(results)),
        ("Augmentation", _augmentation(results, "augmentation")),
        ("Augmentation of strong views", _augmentation(results, "strong_augmentation")),
    ]
    for name, stage in results.stages.items():
        if name == "teacher" and results.settings.get("teacher.weights") is not None:
            continue
        rows += [
            (f"Loss of the {name}", _student_loss(stage.settings) if name == "student" else _teacher_loss(results)),
            (f"Steps of the {name}", _steps(results, name)),
            (f"Learning rate of the {name}", _learning_rate(results, name)),
        ]
    rows += [("Clients", _clients(results)), ("Attack on the networks", _attack(results))]
    return [(name, text) for name, text in rows if text]


def effective(results: Results) -> dict[str, Any]:
    """What settings stand for that may be null, by dotted name."""
    student = results.stages["student"].settings if "student" in results.stages else {}
    return {f"data.{name}": value for name, value in results.data.items()} | {
        f"student.loss.{name}": value for name, value in student.items()
    }


def _images(results: Results) -> str:
    count, mean, std = (results.data.get(name) for name in ("train_images", "mean", "std"))
    if number(count) is None or mean is None or std is None:
        return ""
    if count == 0:
        return f"none; of each channel, less the mean {_plain(mean)}, divided by {_plain(std)}"
    streamed = ", streamed from their files" if _setting(results, "data.streaming") else ""
    made_up = ", synthetic" if data_name(results) == "synthetic signals" else ""
    return f"{count:,}{made_up}{streamed}; of each channel, less the mean {_plain(mean)}, divided by {_plain(std)}"


def _people(results: Results) -> str:
    trained, left_out = (results.data.get(f"people.{of}") for of in ("train", "test"))
    if not isinstance(trained, list) or not isinstance(left_out, list):
        return ""
    return f"trained on {len(trained)}; left out, and measured on, {len(left_out)}: {', '.join(map(shown, left_out))}"


def _labels(results: Results) -> str:
    fine = number(results.data.get("fine_classes"))
    return "" if fine is None else f"{len(results.classes)} coarse classes, which are made of {fine:g} fine ones"


def _label_noise(results: Results) -> str:
    wrong, candidates = (number(results.data.get(f"label_noise.{name}")) for name in ("wrong", "mean_candidates"))
    if wrong is None:
        return ""
    noise, share = _plain(_setting(results, "data.label_noise")), f"{100 * wrong:.4g} %"
    if candidates is None:
        return f"{noise}: {share} of the training labels are wrong"
    each = unit(results)
    return f"{noise}: {candidates:.4g} candidates of each {each} on average; one drawn is wrong for {share} of {each}s"


def _augmentation(results: Results, of: str) -> str:
    if not any(name.startswith(f"{of}.") for name in results.data):
        return ""
    padding, flip, rotation, boxes = (
        results.data.get(f"{of}.{name}") for name in ("crop_padding", "flip", "rotation", "resized_crop")
    )
    # Strong views have one crop for all.
    by_class = results.class_augmentation if of == "augmentation" else None
    milder = len(by_class.chosen) if by_class else 0
    parts = [
        f"padded by {_plain(padding)} {'pixel' if padding == 1 else 'pixels'} a side and cropped" if padding else "",
        f"boxes of {' to '.join(map(_plain, boxes))} of the area, resized" if isinstance(boxes, list) else "",
        f"larger ones for {milder} {'class' if milder == 1 else 'classes'}" if milder else "",
        "mirrored with probability 1/2" if flip else "",
        f"turned by up to {_plain(rotation)}°" if rotation else "",
    ]
    return ", ".join(part for part in parts if part) or "none"


def _teacher_loss(results: Results) -> str:
    prefix, method = "teacher.loss.", str(_setting(results, "teacher.loss.method"))
    named = {
        name.removeprefix(prefix): value for name, value in results.settings.items() if name.startswith(prefix)
    }  # Those of the method in force alone.
    text, positive = f"{method} ({_listed(named, but=('method', 'backend'))})", _setting(results, "teacher.positive")
    if positive != _DEFAULTS["teacher.positive"]:
        text += f", positive: {_plain(positive)}"
    return text + _memory(results)


def _memory(results: Results) -> str:
    prefix, capacity = "teacher.memory.", _setting(results, "teacher.memory.capacity")
    if not capacity:
        return ""
    unusual = {
        name.removeprefix(prefix): value
        for name, value in results.settings.items()
        if name.startswith(prefix) and value != _DEFAULTS.get(name)
    }
    listed = _listed(unusual, but=("capacity",))
    return f", with {_plain(capacity)} remembered embeddings per class{f' ({listed})' if listed else ''}"


def _student_loss(settings: dict[str, Any]) -> str:
    """`settings` are those in force, by dotted name: the weight of the cross-entropy and those of each method.

    Or those of what replaces the whole training, which has neither weight.
    """
    weight = settings.get("cross_entropy_weight")
    terms = [] if weight is None else [f"{_plain(weight)} · cross-entropy"]
    for method in dict.fromkeys(name.partition(".")[0] for name in settings if "." in name):
        own = {name.partition(".")[2]: value for name, value in settings.items() if name.startswith(f"{method}.")}
        listed = _listed(own, but=() if weight is None else ("weight",))
        times = "" if weight is None else f"{_plain(own.get('weight'))} · "
        terms.append(f"{times}{method.replace('_', '-')}{f' ({listed})' if listed else ''}")
    return " + ".join(terms)


def _steps(results: Results, stage: str) -> str:
    names = ("weight_decay", "decay_all", "drop_last", "accumulate")
    decay, decay_all, drop_last, accumulate = (_setting(results, f"{stage}.{name}") for name in names)
    parts = [
        _batch(results, stage) + (", none smaller" if drop_last else ", the last of an epoch may be smaller"),
        f"in {_plain(accumulate)} parts, one after another" if (number(accumulate) or 1) > 1 else "",
        _optimizer(results, stage),
        f"weight decay {_plain(decay)} of {'every parameter' if decay_all else 'weights only'}",
        *(words for name, words in _WAYS.items() if _setting(results, f"{stage}.{name}")),
    ]
    return "; ".join(part for part in parts if part)


def _batch(results: Results, stage: str) -> str:
    balanced = _setting(results, "data.sampler") == "class-balanced"
    return f"{_batch_size(results, stage)} {unit(results)}s each{', as many of each class in it' if balanced else ''}"


def _batch_size(results: Results, stage: str) -> str:
    classes, samples = (number(_setting(results, f"data.{n}")) for n in ("classes_per_batch", "samples_per_class"))
    if classes is not None and samples is not None:
        return f"{classes * samples:.0f}"
    return _plain(_setting(results, f"{stage}.batch_size"))


def _optimizer(results: Results, stage: str) -> str:
    name, momentum, nesterov = (_setting(results, f"{stage}.{of}") for of in ("optimizer", "momentum", "nesterov"))
    if name == "lamb":
        return "LAMB"
    return f"{_plain(name).upper()} with {'Nesterov ' if nesterov else ''}momentum {_plain(momentum)}"


def _learning_rate(results: Results, stage: str) -> str:
    names = ("learning_rate", "epochs", "warmup_epochs", "decay", "schedule", "milestones")
    values = [_setting(results, f"{stage}.{name}") for name in names]
    rate, epochs, warmup, decay = (number(value) for value in values[:4])
    if stage == "student" and results.federation is not None:
        epochs = _passes_of_a_client(results)
    parts = _epochs_of_parts(results, stage)
    if parts:
        epochs = parts[0]
    if rate is None or epochs is None or warmup is None or decay is None:
        return ""
    peak = f"{rate:g}{_scaling(results, stage)}"
    over = "1 epoch" if warmup == 1 else f"{warmup:g} epochs"
    anew = f"; anew for each of {len(parts)} stages, of {', '.join(map(str, parts))} epochs" if parts else ""
    rising = f"rises to {peak} over {over}, then" if warmup else f"{peak}, then"
    if values[4] == "cosine":
        return f"{rising} falls to 0 along a cosine by epoch {epochs:g}{anew}"
    milestones = [number(value) for value in values[5]] if isinstance(values[5], list) else []
    falls = ", ".join(f"{value * epochs:g}" for value in milestones if value is not None)
    return f"{rising} {f'× {decay:g} after epochs {falls} of' if falls else 'the same to epoch'} {epochs:g}{anew}"


def _epochs_of_parts(results: Results, stage: str) -> list[int]:
    """How many epochs each part of a training took that trains a network's stages one after another; else none."""
    trained = [record["trained_stages"] for record in results.stages[stage].history if "trained_stages" in record]
    return [trained.count(stages) for stages in dict.fromkeys(trained)]


def _clients(results: Results) -> str:
    if results.federation is None:
        return ""
    passes, skew = (_setting(results, f"federated.{name}") for name in ("local_epochs", "skew"))
    each = "1 pass" if passes == 1 else f"{_plain(passes)} passes"
    return f"{each} over their own images in a round; classes divided by a Dirichlet distribution of {_plain(skew)}"


def _passes_of_a_client(results: Results) -> float | None:
    rounds, local = (number(_setting(results, f"federated.{name}")) for name in ("rounds", "local_epochs"))
    return None if rounds is None or local is None else rounds * local


def _scaling(results: Results, stage: str) -> str:
    scaling, size = _plain(_setting(results, f"{stage}.rate_scaling")), _batch_size(results, stage)
    return {"linear": f" · {size}/256", "square-root": f" · √({size}/256)"}.get(scaling, "")


def _attack(results: Results) -> str:
    attack, epsilon, steps, size = (
        _setting(results, f"evaluation.{name}") for name in ("attack", "epsilon", "steps", "step_size")
    )
    if attack is None:
        return ""
    moves = f"pixels in [0, 1] changed by {_plain(epsilon)} at most"
    if attack == "fgsm":
        return f"FGSM: {moves}, in one step"
    return f"{_plain(attack).upper()}: {moves}, in {_plain(steps)} steps of {_plain(size)} from a random start"


def _setting(results: Results, name: str) -> Any:
    """A setting, or its default, which is what a run does whose version had no such setting."""
    return results.settings.get(name, _DEFAULTS[name])


def _listed(values: dict[str, Any], but: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items() if name not in but)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


_DEFAULTS = flat(asdict(Settings()))
