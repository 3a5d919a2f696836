"""What is measured of networks whose test images are attacked, and networks that cannot be attacked."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import recall_score

from icckd.data import Batches
from icckd.experiment import experiment
from icckd.experiment.evaluation import Predictions, measure, predict
from icckd.experiment.robustness import Attack, measure_robustness
from icckd.models import ARCHITECTURES, Stages, build_model, load_model, register
from icckd.settings import EvaluationSettings
from tests.cli.test_commands import SMALL, contents, image_folder, run

MEAN, STD = [0.45], [0.2]


def images(count=11, seed=2):
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=random)
    return pixels, torch.randint(3, (count,), generator=random)


def batches(batch_size, **chosen):
    fixed = {"mean": MEAN, "std": STD, "augmentation": None, "views": 1, "shuffle": False, "seed": 0, "device": "cpu"}
    return Batches(*images(), batch_size=batch_size, drop_last=False, **fixed, **chosen)


def network():
    torch.manual_seed(1)
    return build_model("convnet-small", 1, 3, 8)


def attack(name="pgd", seed=5, **chosen):
    return Attack(EvaluationSettings(attack=name, epsilon=0.1, steps=4, step_size=0.04, **chosen), MEAN, STD, seed)


def predictions(seed, classes=5, count=60):
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=random)
    labels = torch.randint(classes, (count,), generator=random)
    # So that classes are told with different ease.
    logits[torch.arange(count), labels] += 0.5 * labels
    return Predictions(torch.ones(count, 2), logits, labels)


@pytest.mark.parametrize("seed", range(3))
def test_robust_measures_are_those_of_scikit_learn_s_recall(seed):
    said = predictions(seed)
    found = measure_robustness(said)
    by_class = recall_score(said.labels, said.logits.argmax(1), average=None)
    assert found["robust_accuracy"] == pytest.approx((said.logits.argmax(1) == said.labels).double().mean().item())
    assert found["worst_class_robust_accuracy"] == pytest.approx(min(by_class))
    assert found["robust_accuracy_spread"] == pytest.approx(np.std(by_class) / np.mean(by_class))
    assert found["per_class_robust_accuracy"] == pytest.approx(by_class)
    assert measure(said)["class_accuracy_spread"] == pytest.approx(found["robust_accuracy_spread"], rel=1e-12)


def test_classes_without_images_do_not_count_and_answers_that_are_no_numbers_are_wrong():
    said = predictions(3)
    said.labels[said.labels == 2] = 1
    found = measure_robustness(said)
    known = [value for value in found["per_class_robust_accuracy"] if not math.isnan(value)]
    assert len(known) == 4
    assert math.isnan(found["per_class_robust_accuracy"][2])
    assert found["worst_class_robust_accuracy"] == min(known)
    assert found["robust_accuracy_spread"] == pytest.approx(np.std(known) / np.mean(known))
    said.logits[:, 0] = torch.nan  # argmax then names class 0.
    broken = measure_robustness(said)
    assert broken["robust_accuracy"] == broken["worst_class_robust_accuracy"] == 0
    assert math.isnan(broken["robust_accuracy_spread"])


def test_an_attack_is_that_of_each_image_however_they_are_cut_into_batches():
    model = network()
    whole, parts, other = (attack(seed=seed).predict(model, batches(size)) for seed, size in ((5, 11), (5, 4), (6, 11)))
    torch.testing.assert_close(parts.logits, whole.logits, rtol=1e-4, atol=1e-5)
    assert (other.logits - whole.logits).abs().max() > 1e-3
    assert torch.equal(whole.labels, images()[1])


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
def test_steps_follow_the_gradient_of_the_cross_entropy_and_leave_the_network_alone(name):
    """Against a loop over images in float64."""
    model = network().train()
    model.requires_grad_(True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    found = attack(name).predict(model, batches(4))
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())

    exact = network().double().eval()
    random = torch.Generator().manual_seed(5)
    pixels, labels = images()
    for row, (image, label) in enumerate(zip(pixels.double() / 255, labels, strict=True)):
        start = torch.empty(1, 8, 8).uniform_(-0.1, 0.1, generator=random)
        steps, size = (4, 0.04) if name == "pgd" else (1, 0.1)
        moved = (image + start.double()).clamp(0, 1) if name == "pgd" else image
        for _ in range(steps):
            leaf = moved.clone().requires_grad_()
            error = -exact(((leaf - MEAN[0]) / STD[0]).unsqueeze(0))[1].log_softmax(1)[0, label]
            (slope,) = torch.autograd.grad(error, leaf)
            moved = torch.minimum(torch.maximum(moved + size * slope.sign(), image - 0.1), image + 0.1).clamp(0, 1)
        expected = exact(((moved - MEAN[0]) / STD[0]).unsqueeze(0))[1][0]
        torch.testing.assert_close(found.logits[row].double(), expected, rtol=1e-2, atol=1e-2)


def test_attacked_images_are_called_wrong_more_often():
    model = network()
    plain, attacked = (
        torch.nn.functional.cross_entropy(said.logits, said.labels)
        for said in (predict(model, batches(11)), attack().predict(model, batches(11)))
    )
    assert attacked > plain + 0.01


ATTACKED = ["--evaluation.attack", "pgd", "--evaluation.steps", "3", "--evaluation.epsilon", "0.2"]


@pytest.fixture
def without_report(monkeypatch):
    """The report takes half of so small a run's time."""
    monkeypatch.setattr(experiment, "write_report", lambda folder: None)


def test_a_run_and_an_evaluation_tell_of_robustness(tmp_path, without_report):
    settings = [*image_folder(tmp_path / "data"), *SMALL, *ATTACKED]
    assert run("run", "--output", tmp_path / "run", *settings) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for stage in ("teacher", "student"):
        measures = summary[stage]
        assert measures["robust_accuracy"] == pytest.approx(np.mean(measures["per_class_robust_accuracy"]))
        assert measures["worst_class_robust_accuracy"] == min(measures["per_class_robust_accuracy"])
        assert {"robust_accuracy_spread", "class_accuracy_spread"} <= measures.keys()
    weights = ["--teacher.weights", tmp_path / "run" / "student"]
    assert run("evaluate", "--output", tmp_path / "evaluated", *settings, *weights) == 0
    evaluated = json.loads((tmp_path / "evaluated" / "summary.json").read_text())["teacher"]
    names = ("robust_accuracy", "per_class_robust_accuracy", "class_accuracy_spread")
    assert {name: evaluated[name] for name in names} == {name: summary["student"][name] for name in names}


@pytest.fixture
def blind(monkeypatch):
    """A network whose answers do depend on images, by steps that have no gradient."""
    list(ARCHITECTURES)
    monkeypatch.setattr(ARCHITECTURES, "_items", dict(ARCHITECTURES._items))

    class Rounded(torch.nn.Module):
        def forward(self, images):
            return images.detach().round()

    @register("blind")
    def build(arch, channels, image_size):
        return Stages(6, [[Rounded(), torch.nn.Conv2d(channels, 6, 1)], [torch.nn.ReLU()]])

    return "blind"


def last_line(capsys):
    """After what is said of pictures that are read."""
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_a_network_without_gradient_is_refused_before_anything_is_trained(stage, blind, tmp_path, capsys):
    settings = [*image_folder(tmp_path / "data"), *SMALL, *ATTACKED, f"--{stage}.arch", blind]
    assert run("run", "--output", tmp_path / "run", *settings) == 2
    line = last_line(capsys)
    assert line.startswith(f"icckd: error: evaluation.attack is pgd, but blind, the {stage}, has no gradient")
    assert not (tmp_path / "run").exists()


def test_a_given_network_without_gradient_costs_nothing_that_was_there(blind, tmp_path, capsys, without_report):
    data = [*image_folder(tmp_path / "data"), *SMALL]
    assert run("teacher", "--output", tmp_path / "run", *data, "--teacher.arch", blind) == 0
    before = contents(tmp_path / "run")
    capsys.readouterr()
    given = ["--teacher.weights", tmp_path / "run" / "teacher", "--output", tmp_path / "run", "--overwrite"]
    assert run("evaluate", *data, *ATTACKED, *given) == 2
    assert "evaluation.attack is pgd, but blind, the teacher, has no gradient" in last_line(capsys)
    assert run("distill", *data, *given, "--student.loss.method", "absld", "--student.arch", blind) == 2
    assert "student.arch is blind, which has no gradient with respect to its images" in last_line(capsys)
    assert contents(tmp_path / "run") == before
    assert load_model(tmp_path / "run" / "teacher")[1].arch == blind
