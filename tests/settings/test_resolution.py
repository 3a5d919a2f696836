"""Settings from what was given: nested or dotted, presets beneath, clear words for what is wrong."""

from dataclasses import asdict

import pytest

from icckd.errors import UserError
from icckd.settings import Settings, flat, settings_from
from icckd.training.schedule import peak_rate

# The field's protocol for CIFAR-100, as RepDistiller and those that follow it train.
PAPER_CIFAR100 = {
    "epochs": 240,
    "batch_size": 64,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "rate_scaling": "none",
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 5e-4,
    "decay_all": True,
    "schedule": "step",
    "warmup_epochs": 0.0,
    "milestones": [150 / 240, 180 / 240, 210 / 240],
    "decay": 0.1,
    "drop_last": False,
}


def test_nothing_given_is_all_defaults():
    assert settings_from({}, "here") == Settings()


def test_nested_and_dotted_names_are_the_same():
    nested = settings_from({"teacher": {"loss": {"weight": 0.5}, "epochs": 3}, "seed": 7}, "here")
    dotted = settings_from({"teacher.loss.weight": 0.5, "teacher": {"epochs": 3}, "seed": 7}, "here")
    assert nested == dotted
    assert (nested.teacher.loss.weight, nested.teacher.epochs, nested.seed) == (0.5, 3, 7)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"teacher.epochs": "many"}, "teacher.epochs: expected int, got many"),
        ({"teacher": {"epoch": 3}}, "the file: teacher.epoch is no setting"),
        ({"student.loss.kd.tempreature": 3}, "student.loss.kd.tempreature is no setting"),
        ({"teacher": None}, "teacher is null"),
        ({"seed": None}, "seed is null"),
        ({"seed.x": 1, "seed": 1}, "one of them"),
        ({"seed": 1, "seed.x": 1}, "one of them"),
        ({"preset": "papers"}, "preset"),
        ({"preset": "fast", "student.batch_size": "many"}, "student.batch_size: expected int, got many"),
        ({"preset": "paper"}, "no protocol for digits"),
        ({"preset": "paper", "data.name": "fashion-mnist"}, "no protocol for fashion-mnist"),
        ({"preset": "paper", "data.name": ["cifar100"]}, "data.name"),
    ],
)
def test_what_is_wrong_is_named_with_its_source(values, words):
    with pytest.raises(UserError, match=r"^the file: ") as error:
        settings_from(values, "the file")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("evaluation.attack", "pgdd", "expected one of 'fgsm', 'pgd' or null, got pgdd"),
        ("student.loss.pkd.warmup_rounds", "x", "expected int or null, got x"),
        ("data.mean", "x - y", "expected list or null, got x - y"),
        ("data.left_out", [[1]], r"expected str or int or null, got \[\[1\]\]"),
    ],
)
def test_what_may_be_of_several_types_or_null_is_said_in_a_few_words(name, value, words):
    with pytest.raises(UserError, match=f"here: {name}: {words}$"):
        settings_from({name: value}, "here")


def test_a_name_of_an_earlier_version_is_told_the_new_one():
    with pytest.raises(
        UserError, match=r"student\.loss\.temperature of the file is now called student\.loss\.kd\.temperature"
    ):
        settings_from({"student.loss.temperature": 2.0}, "the file")


def test_paper_is_the_fields_protocol_for_both_networks():
    settings = flat(asdict(settings_from({"preset": "paper", "data.name": "cifar100"}, "here")))
    for stage in ("teacher", "student"):
        assert {name: settings[f"{stage}.{name}"] for name in PAPER_CIFAR100} == PAPER_CIFAR100
    assert settings["data.mean"] == [0.5071, 0.4867, 0.4408]
    assert (settings["data.augmentation.crop_padding"], settings["data.augmentation.flip"]) == (4, True)


def test_paper_goes_gently_with_mobile_networks_on_small_images():
    mobile = {"preset": "paper", "student.arch": "mobilenetv2_half", "teacher.arch": "shufflenetv1"}
    small = settings_from({**mobile, "data.name": "cifar100"}, "here")
    assert (small.teacher.learning_rate, small.student.learning_rate) == (0.01, 0.01)
    assert settings_from({**mobile, "data.name": "tiny-imagenet"}, "here").student.learning_rate == 0.2


def test_paper_on_tiny_imagenet_and_imagenet():
    tiny = settings_from({"preset": "paper", "data.name": "tiny-imagenet"}, "here")
    assert (tiny.teacher.epochs, tiny.teacher.batch_size, tiny.data.augmentation.rotation) == (200, 256, 20.0)
    assert [round(200 * m) for m in tiny.student.milestones] == [60, 120, 160]
    whole = settings_from({"preset": "paper", "data.name": "image-folder"}, "here")
    assert [round(100 * m) for m in whole.teacher.milestones] == [30, 60, 90]
    assert (whole.data.image_size, whole.data.augmentation.resized_crop) == (224, [0.08, 1.0])
    assert (whole.student.loss.weight_of_cross_entropy(), whole.student.loss.weights()) == (0.5, {"kd": 0.5})
    assert whole.student.loss.kd.temperature == 1.0


def test_what_is_given_goes_over_the_preset():
    settings = settings_from({"preset": "paper", "data.name": "cifar10", "student": {"epochs": 2}}, "here")
    assert (settings.student.epochs, settings.teacher.epochs) == (2, 240)


@pytest.mark.parametrize(("device", "on_gpu"), [("cpu", False), ("cuda", True)])
def test_fast_is_large_batches_and_on_a_gpu_compiled_in_half_precision(device, on_gpu):
    teacher = settings_from({"preset": "fast", "device": device}, "here").teacher
    assert (teacher.batch_size, teacher.channels_last, teacher.drop_last) == (1024, True, True)
    assert (teacher.autocast, teacher.compile) == (on_gpu, on_gpu)


@pytest.mark.parametrize(
    ("batch", "optimizer", "peak", "warmup", "decay"),
    [
        *((size, "sgd", 0.1 * size / 256, 5, 5e-4) for size in (64, 1024, 4096, 8192)),
        *((size, "lamb", 0.04 / 2**0.5 * (size / 16384) ** 0.5, 10, 1.5) for size in (8193, 16384, 32768)),
    ],
)
@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_fast_has_a_rate_for_the_batch(stage, batch, optimizer, peak, warmup, decay):
    settings = settings_from({"preset": "fast", f"{stage}.batch_size": batch}, "here")
    network, other = (settings.teacher, settings.student)[:: 1 if stage == "teacher" else -1]
    assert (network.batch_size, network.optimizer, network.warmup_epochs) == (batch, optimizer, warmup)
    assert (peak_rate(network), network.weight_decay) == pytest.approx((peak, decay))
    assert (other.batch_size, other.optimizer, peak_rate(other)) == (1024, "sgd", pytest.approx(0.4))


def test_fast_knows_how_many_images_a_balanced_batch_holds():
    balanced = {"data.sampler": "class-balanced", "data.classes_per_batch": 512, "data.samples_per_class": 32}
    settings = settings_from({"preset": "fast", **balanced}, "here")
    assert (settings.teacher.optimizer, settings.student.optimizer) == ("lamb", "lamb")
    with pytest.raises(UserError, match=r"data\.classes_per_batch"):
        settings_from({"preset": "fast", **balanced, "data.classes_per_batch": "x"}, "here")


def test_fast_warms_up_no_longer_than_it_trains():
    assert settings_from({"preset": "fast", "teacher.epochs": 2}, "here").teacher.warmup_epochs == 2
