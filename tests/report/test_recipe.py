"""What is in force, in words, from the files of a run."""

import pytest

from icckd.report.recipe import effective, recipe
from icckd.report.results import read_results


def words(run):
    run.write()
    return dict(recipe(read_results(run.path)))


@pytest.mark.parametrize(
    ("augmentation", "text"),
    [
        ({"crop_padding": 0, "flip": True, "rotation": 20.0}, "mirrored with probability 1/2, turned by up to 20°"),
        ({"crop_padding": 0, "flip": False, "rotation": 0.0, "resized_crop": None}, "none"),
        ({"crop_padding": 1, "flip": False}, "padded by 1 pixel a side and cropped"),
        ({"crop_padding": 0, "resized_crop": [0.08, 1.0]}, "boxes of 0.08 to 1 of the area, resized"),
    ],
)
def test_augmentation(run, augmentation, text):
    run.summary["data"]["augmentation"] = augmentation
    assert words(run)["Augmentation"] == text


def test_strong_views_and_noise_are_told_where_there_are_any(run, monkeypatch):
    found, strong = words(run), "data.strong_augmentation.rotation"
    assert "Augmentation of strong views" not in found
    assert "Label noise" not in found
    assert strong not in read_results(run.path).settings
    monkeypatch.setattr("icckd.methods.intra_class.IntraClass.strong_views", 1)
    assert strong in read_results(run.path).settings
    run.settings["teacher"]["loss"].update(strong_second_view=True, weight="much")  # A file that nobody checked.
    assert words(run)["Augmentation"] == found["Augmentation"]
    run.settings["data"]["label_noise"] = "partial:0.1"
    run.summary["data"]["label_noise"] = {"wrong": 0.3561, "mean_candidates": 1.949}
    run.summary["data"]["strong_augmentation"] = {"crop_padding": 0, "flip": False, "rotation": 15.0}
    found = words(run)
    assert found["Augmentation of strong views"] == "turned by up to 15°"
    assert found["Label noise"] == (
        "partial:0.1: 1.949 candidates of each image on average; one drawn is wrong for 35.61 % of images"
    )
    run.settings["data"]["label_noise"] = "symmetric:0.4"
    run.summary["data"]["label_noise"] = {"wrong": 0.4}
    assert words(run)["Label noise"] == "symmetric:0.4: 40 % of the training labels are wrong"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"warmup_epochs": 2.5, "epochs": 12},
            "rises to 0.1 over 2.5 epochs, then falls to 0 along a cosine by epoch 12",
        ),
        ({"warmup_epochs": 0.0}, "0.1, then falls to 0 along a cosine by epoch 20"),
        ({"schedule": "step"}, "rises to 0.1 over 1 epoch, then × 0.1 after epochs 10, 15 of 20"),
        (
            {"warmup_epochs": 0.0, "rate_scaling": "linear", "batch_size": 512},
            "0.1 · 512/256, then falls to 0 along a cosine by epoch 20",
        ),
        (
            {"rate_scaling": "square-root"},
            "rises to 0.1 · √(64/256) over 1 epoch, then falls to 0 along a cosine by epoch 20",
        ),
        ({"schedule": "step", "milestones": []}, "rises to 0.1 over 1 epoch, then the same to epoch 20"),
    ],
)
def test_learning_rate(run, settings, text):
    run.settings["student"].update(settings)
    assert words(run)["Learning rate of the student"] == text


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({}, "64 images each, as many of each class in it, none smaller; "),
        ({"classes_per_batch": 512, "samples_per_class": 32}, "16384 images each, as many of each class in it, none"),
    ],
)
def test_balanced_batches(run, sizes, text):
    run.settings["data"].update(sampler="class-balanced", **sizes)
    assert words(run)["Steps of the teacher"].startswith(text)


def test_methods_and_what_they_remember(run):
    run.settings["teacher"]["memory"]["capacity"] = 8
    run.settings["student"].update(autocast=True, drop_last=False)
    run.summary["student"]["settings"] = {
        "cross_entropy_weight": 1.0,
        "kd": {"weight": 0.5, "temperature": 2.0},
        "similarity_preserving": {"weight": 3000.0},
    }
    found = words(run)
    assert found["Loss of the teacher"].endswith("with 8 remembered embeddings per class")
    run.settings["teacher"]["memory"].update(dtype="float8", warmup_epochs=2)
    run.settings["teacher"]["positive"] = "previous-epoch"
    assert words(run)["Loss of the teacher"].endswith(
        "), positive: previous-epoch, with 8 remembered embeddings per class (dtype float8, warmup_epochs 2)"
    )
    assert found["Loss of the student"] == (
        "1 · cross-entropy + 0.5 · kd (temperature 2) + 3000 · similarity-preserving"
    )
    assert found["Steps of the student"].startswith("64 images each, the last of an epoch may be smaller; ")
    assert found["Steps of the student"].endswith("; bfloat16")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"optimizer": "lars", "nesterov": False}, "LARS with momentum 0.9; weight decay"),
        ({"optimizer": "lamb"}, "; LAMB; weight decay"),
        ({"accumulate": 4}, "; in 4 parts, one after another; SGD"),
        ({"channels_last": True, "cuda_graph": True}, "; channels last; captured in a CUDA graph"),
    ],
)
def test_steps(run, settings, text):
    run.settings["student"].update(settings)
    assert text in words(run)["Steps of the student"]


def test_a_teacher_that_was_given_was_not_trained_by_these_settings(run):
    run.settings["teacher"]["weights"] = "runs/other/teacher"
    assert "Loss of the student" in words(run)
    assert "Loss of the teacher" not in words(run)


@pytest.mark.parametrize("value", [None, "<b>", -1, True, [None, "x"], {"a": {"b": 1}}])
def test_odd_values_do_no_harm(run, value):
    names = ("train_images", "mean", "std")
    run.summary["data"] = dict.fromkeys(names, value) | {"augmentation": {"flip": value, "resized_crop": value}}
    run.summary["student"]["settings"] = {"cross_entropy_weight": value, "kd": {"weight": value, "temperature": value}}
    plain = None if isinstance(value, dict) else value
    for name in ("learning_rate", "schedule", "milestones", "momentum", "batch_size", "warmup_epochs"):
        run.settings["student"][name] = plain
    assert all(isinstance(text, str) for text in words(run).values())
    assert effective(read_results(run.path)).keys() >= (set() if isinstance(value, dict) else {"data.mean"})


def test_a_run_of_an_older_version_tells_less(run):
    del run.summary["data"], run.summary["student"]["settings"]
    del run.settings["teacher"]["nesterov"]
    found = words(run)
    assert not {"Augmentation", "Training images", "Loss of the student"} & found.keys()
    assert "SGD with Nesterov momentum 0.9" in found["Steps of the teacher"]


def test_stages_that_are_trained_one_after_another_have_a_schedule_each(run):
    student = [record for record in run.metrics if record["stage"] == "student"]
    for epoch, record in enumerate(student):
        record["trained_stages"] = 1 if epoch == 0 else 2
    assert words(run)["Learning rate of the student"] == (
        "rises to 0.1 over 1 epoch, then falls to 0 along a cosine by epoch 1; anew for each of 2 stages, of "
        f"1, {len(student) - 1} epochs"
    )


def test_clients_are_told_of_where_there_are_any(run):
    assert "Clients" not in words(run)
    run.summary["student"]["federated"] = {
        "images_by_client": [3, 4], "bytes_by_round": [1], "warmup_rounds": 1, "weak_classes": None, "groups": None
    }  # fmt: skip
    run.settings["federated"] = {"clients": 2, "rounds": 1, "local_epochs": 3, "skew": 0.25}
    expected = "3 passes over their own images in a round; classes divided by a Dirichlet distribution of 0.25"
    assert words(run)["Clients"] == expected
