import math
from dataclasses import replace

import pytest

from icckd.errors import UserError
from icckd.methods.absld import AbsldSettings
from icckd.methods.pkd import PkdSettings
from icckd.settings import (
    AugmentationSettings,
    ClassAugmentationSettings,
    DataSettings,
    EvaluationSettings,
    FederatedSettings,
    MemorySettings,
    Settings,
    StrongAugmentationSettings,
    StudentLossSettings,
    StudentSettings,
    TeacherLossSettings,
    TeacherSettings,
    check,
)


def varied(**augmentation):
    return Settings(data=DataSettings(augmentation=AugmentationSettings(**augmentation)))


def tried(crop=(0.2, 0.8), classes=1, **class_augmentation):
    settings = varied(resized_crop=crop and list(crop))
    settings.data.class_augmentation = ClassAugmentationSettings(classes, **class_augmentation)
    return settings


def both_views(positive):
    return Settings(teacher=TeacherSettings(loss=TeacherLossSettings(cross_entropy_views="both"), positive=positive))


def robust(**absld):
    loss = StudentLossSettings(method="absld", absld=AbsldSettings(**absld))
    return Settings(student=StudentSettings(loss=loss))


def federated(**pkd):
    return Settings(student=StudentSettings(loss=StudentLossSettings(method="pkd", pkd=PkdSettings(**pkd))))


FEDERATED = [("clients", 0), ("rounds", 0), ("local_epochs", 0), ("skew", 0.0), ("skew", math.nan)]
PKD = [
    *(("weight", -0.1), ("temperature", 0.0), ("warmup_rounds", 0), ("threshold", 1.0), ("confusion", 0.0)),
    ("expert_rounds", 0),
]
ABSLD = [
    *(("epsilon", 0.0), ("epsilon", 8.0), ("step_size", 0.0), ("steps", 0), ("start", -0.1)),
    *(("adversarial_weight", 1.1), ("temperature", 0.4), ("temperature", 5.5), ("lowest", 0.0), ("rate", math.inf)),
]


def signals(teacher="intra-class", student="kd", attack=None, **values):
    return Settings(
        data=DataSettings(name="signals", **values),
        teacher=TeacherSettings(loss=TeacherLossSettings(method=teacher)),
        student=StudentSettings(loss=StudentLossSettings(method=student)),
        evaluation=EvaluationSettings(attack=attack),
    )


# What has no meaning for signals, or is out of range for them.
NO_SIGNALS = [
    ("data.image_size", {"image_size": 32}),
    ("data.labels", {"labels": "coarse"}),
    ("data.streaming", {"streaming": True}),
    ("data.augmentation.crop_padding", {"augmentation": AugmentationSettings(crop_padding=1)}),
    ("data.augmentation.flip", {"augmentation": AugmentationSettings(flip=True)}),
    ("data.augmentation.rotation", {"augmentation": AugmentationSettings(rotation=5.0)}),
    ("data.augmentation.resized_crop", {"augmentation": AugmentationSettings(resized_crop=[0.5, 1.0])}),
    ("data.strong_augmentation.rotation", {"strong_augmentation": StrongAugmentationSettings(rotation=5.0)}),
    ("data.left_out", {"left_out": []}),
    ("data.left_out", {"left_out": [1, "1"]}),
    ("data.mean", {"mean": [math.nan], "std": [1.0]}),
    ("data.std", {"mean": [0.0], "std": [0.0]}),
    ("evaluation.attack", {"attack": "pgd"}),
    ("teacher.loss.method", {"teacher": "wsc"}),
    ("student.loss.method", {"student": "absld"}),
    ("student.loss.method", {"student": "rgal"}),
]


def test_defaults_are_valid():
    check(signals(left_out=["Ada"], mean=[-300.0], std=[70.0], augmentation=AugmentationSettings(0, False)))
    check(Settings())
    check(robust())
    check(both_views("second-view"))
    check(Settings(teacher=TeacherSettings(positive="previous-epoch")))


def test_a_method_that_learns_from_its_second_view_keeps_it(monkeypatch):
    monkeypatch.setattr("icckd.methods.intra_class.IntraClass.takes_positives", False)
    check(Settings())
    with pytest.raises(UserError, match=r"teacher\.positive is previous-epoch; it should be second-view with"):
        check(Settings(teacher=TeacherSettings(positive="previous-epoch")))


@pytest.mark.parametrize(
    ("loss", "named"),
    [({"method": "wsc"}, "method wsc"), ({"strong_second_view": True}, "strong_second_view")],
)
def test_strong_views_are_not_made_of_images_in_files(loss, named):
    streamed = DataSettings(name="image-folder", streaming=True)
    check(Settings(data=streamed))
    teacher = TeacherSettings(loss=TeacherLossSettings(**loss))
    check(Settings(teacher=teacher))
    check(Settings(data=streamed, teacher=teacher), ["student"])
    with pytest.raises(UserError, match=rf"data\.streaming is true; it should be false with teacher\.loss\.{named}, "):
        check(Settings(data=streamed, teacher=teacher))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (
            Settings(data=DataSettings(strong_augmentation=StrongAugmentationSettings(crop_padding=1))),
            "data.strong_augmentation.crop_padding",
        ),
        (
            Settings(data=DataSettings(strong_augmentation=StrongAugmentationSettings(rotation=-1.0))),
            "data.strong_augmentation.rotation",
        ),
        (Settings(evaluation=EvaluationSettings(epsilon=8.0)), "evaluation.epsilon"),
        (Settings(evaluation=EvaluationSettings(epsilon=0.0)), "evaluation.epsilon"),
        (Settings(evaluation=EvaluationSettings(steps=0)), "evaluation.steps"),
        (Settings(evaluation=EvaluationSettings(step_size=float("nan"))), "evaluation.step_size"),
        (Settings(data=DataSettings("signals"), evaluation=EvaluationSettings("fgsm")), "evaluation.attack"),
        (replace(robust(), data=DataSettings("signals")), "student.loss.method"),
        *((robust(**{name: value}), f"student.loss.absld.{name}") for name, value in ABSLD),
        *((signals(**values), name) for name, values in NO_SIGNALS),
        (Settings(data=DataSettings(left_out=["Ada"])), "data.left_out"),
        (Settings(seed=-1), "seed"),
        *((Settings(federated=FederatedSettings(**{name: value})), f"federated.{name}") for name, value in FEDERATED),
        *((federated(**{name: value}), f"student.loss.pkd.{name}") for name, value in PKD),
        (Settings(checkpoint_every=-1), "checkpoint_every"),
        (Settings(checkpoint_every=10**23), "checkpoint_every"),
        (Settings(data=DataSettings(validation=1.0)), "data.validation"),
        (Settings(data=DataSettings(image_size=4)), "data.image_size"),
        (Settings(data=DataSettings(train_fraction=0.0)), "data.train_fraction"),
        (Settings(data=DataSettings(train_fraction=1.1)), "data.train_fraction"),
        (Settings(data=DataSettings(mean=[0.5, float("nan")], std=[0.5, 0.5])), "data.mean"),
        (Settings(data=DataSettings(mean=[125.3], std=[0.5])), "data.mean"),
        (Settings(data=DataSettings(mean=[0.5], std=[63.0])), "data.std"),
        (Settings(data=DataSettings(mean=[0.5], std=[1e-42])), "data.std"),
        (Settings(data=DataSettings(mean=[0.5])), "data.mean"),
        (Settings(data=DataSettings(std=[0.5])), "data.mean"),
        (Settings(data=DataSettings(classes_per_batch=4)), "data.classes_per_batch"),
        (Settings(data=DataSettings(samples_per_class=4)), "data.samples_per_class"),
        (Settings(data=DataSettings(sampler="class-balanced", classes_per_batch=1)), "data.classes_per_batch"),
        (Settings(data=DataSettings(sampler="class-balanced", samples_per_class=0)), "data.samples_per_class"),
        (Settings(data=DataSettings(streaming=True, name="tiny-imagenet")), "data.streaming"),
        (Settings(data=DataSettings(workers=2)), "data.workers"),
        (Settings(data=DataSettings(streaming=True, name="image-folder", workers=-1)), "data.workers"),
        (varied(crop_padding=-1), "data.augmentation.crop_padding"),
        (varied(rotation=-1.0), "data.augmentation.rotation"),
        (varied(rotation=float("nan")), "data.augmentation.rotation"),
        (varied(resized_crop=[0.5]), "data.augmentation.resized_crop"),
        (varied(resized_crop=[0.0, 1.0]), "data.augmentation.resized_crop"),
        (varied(resized_crop=[0.6, 0.5]), "data.augmentation.resized_crop"),
        (varied(resized_crop=[0.5, 1.5]), "data.augmentation.resized_crop"),
        (varied(resized_crop=[0.5, 1.0], crop_padding=4), "data.augmentation.crop_padding"),
        (tried(classes=-1), "data.class_augmentation.classes"),
        (tried(classes=0, areas=[0.5, 1.5]), "data.class_augmentation.areas"),
        (tried(areas=[]), "data.class_augmentation.areas"),
        (tried(areas=[0.1, 0.2, 0.9]), "data.class_augmentation.areas"),
        (tried(crop=None), "data.augmentation.resized_crop"),
        (tried(crop=[0.5]), "data.augmentation.resized_crop"),
        (tried(holdout=1.0), "data.class_augmentation.holdout"),
        (tried(epochs=0), "data.class_augmentation.epochs"),
        (replace(tried(epochs=2), teacher=TeacherSettings(warmup_epochs=3.0)), "data.class_augmentation.epochs"),
        (Settings(teacher=TeacherSettings(epochs=0)), "teacher.epochs"),
        (Settings(teacher=TeacherSettings(memory=MemorySettings(-1))), "teacher.memory.capacity"),
        (Settings(teacher=TeacherSettings(memory=MemorySettings(warmup_epochs=-1))), "teacher.memory.warmup_epochs"),
        (Settings(teacher=TeacherSettings(memory=MemorySettings(average=1.0))), "teacher.memory.average"),
        (both_views("second-view-detached"), "teacher.loss.cross_entropy_views"),
        (both_views("previous-epoch"), "teacher.loss.cross_entropy_views"),
        (Settings(teacher=TeacherSettings(batch_size=1)), "teacher.batch_size"),
        (Settings(teacher=TeacherSettings(milestones=[0.5, 1.0])), "teacher.milestones"),
        (Settings(teacher=TeacherSettings(learning_rate=float("nan"))), "teacher.learning_rate"),
        (Settings(teacher=TeacherSettings(accumulate=0)), "teacher.accumulate"),
        (Settings(student=StudentSettings(accumulate=2, cuda_graph=True)), "student.accumulate"),
        (Settings(student=StudentSettings(optimizer="lars", cuda_graph=True)), "student.cuda_graph"),
        (Settings(teacher=TeacherSettings(learning_rate=1e39)), "teacher.learning_rate"),
        (Settings(teacher=TeacherSettings(learning_rate=1e30, rate_scaling="linear")), "teacher.learning_rate"),
        (Settings(student=StudentSettings(weight_decay=1e39)), "student.weight_decay"),
        (Settings(teacher=TeacherSettings(loss=TeacherLossSettings(weight=-0.1))), "teacher.loss.weight"),
        (Settings(teacher=TeacherSettings(loss=TeacherLossSettings(margin=float("nan")))), "teacher.loss.margin"),
        (Settings(teacher=TeacherSettings(loss=TeacherLossSettings(temperature=0))), "teacher.loss.temperature"),
        (Settings(student=StudentSettings(warmup_epochs=99)), "student.warmup_epochs"),
        (Settings(student=StudentSettings(momentum=1.0)), "student.momentum"),
    ],
)
def test_a_value_out_of_range_is_named(settings, name):
    with pytest.raises(UserError, match=rf"^{name} is .*; it should be "):
        check(settings)


def test_class_augmentation_needs_trials():
    check(tried(areas=[0.1, 0.3, 0.9], epochs=1))
    with pytest.raises(UserError, match=r"^data\.augmentation\.resized_crop is null; it should be two fractions"):
        check(tried(crop=None))
    given = replace(tried(), teacher=TeacherSettings(weights="teacher"))
    check(given, stages=())
    with pytest.raises(UserError, match=r"^teacher\.weights is teacher; it should be null where data\.class_aug"):
        check(given, stages=("student",))


def test_areas_are_tried_from_the_strongest_on():
    settings = ClassAugmentationSettings(areas=[0.9, 0.3, 0.2, 0.1, 0.8, 0.3])
    assert settings.tried([0.2, 0.8]) == [0.2, 0.3, 0.8]


def test_settings_of_the_published_protocols_are_valid():
    check(varied(crop_padding=0, flip=True, rotation=20.0))
    check(varied(resized_crop=[0.08, 1.0], crop_padding=0))
    check(Settings(data=DataSettings(mean=[0.5071, 0.4867, 0.4408], std=[0.2675, 0.2565, 0.2761])))


def test_stages_that_do_not_run_are_not_looked_at():
    wrong = Settings(teacher=TeacherSettings(epochs=0), student=StudentSettings(momentum=1.0))
    check(wrong, stages=())
    with pytest.raises(UserError, match=r"^teacher\.epochs"):
        check(wrong, stages=("teacher",))
    with pytest.raises(UserError, match=r"^student\.momentum"):
        check(wrong, stages=("student",))
    with pytest.raises(UserError, match=r"^seed"):
        check(replace(wrong, seed=-1), stages=())


@pytest.mark.parametrize("text", ["caf\udce9", "a\0b"])
def test_a_text_that_no_file_can_hold_is_named(text):
    with pytest.raises(UserError, match=r"^data\.root is "):
        check(Settings(data=DataSettings(root=text)))


def test_a_short_training_needs_a_shorter_warmup():
    check(replace(Settings(), teacher=TeacherSettings(epochs=1, warmup_epochs=0.5)))
