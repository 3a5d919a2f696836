"""Which images the report shows."""

import pytest
import torch

from icckd.experiment.evaluation import Predictions
from icckd.experiment.examples import choose_examples


def random_case(seed, count=80, classes=5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator)
    logits[torch.arange(count), labels] += 2
    images = torch.randint(256, (count, 1, 4, 4), generator=generator).to(torch.uint8)
    return Predictions(torch.zeros(count, 3), logits, labels), images


def test_examples_are_rows_of_the_test_data():
    predictions, images = random_case(0)
    examples = choose_examples(predictions, images)
    rows = examples["indices"]
    assert len(set(rows.tolist())) == 12
    assert torch.equal(examples["images"], images[rows])
    assert torch.equal(examples["labels"], predictions.labels[rows])
    assert torch.equal(examples["logits"], predictions.logits[rows])


def test_typical_images_have_their_class_median_entropy():
    predictions, images = random_case(1)
    rows = choose_examples(predictions, images)["indices"][:5].tolist()
    assert predictions.labels[rows].tolist() == [0, 1, 2, 3, 4]
    probabilities = predictions.logits.double().softmax(1)
    entropy = -(probabilities * probabilities.log()).sum(1)
    for label, row in enumerate(rows):
        right = (predictions.labels == label) & (predictions.logits.argmax(1) == label)
        assert entropy[row] == entropy[right].median()


def test_the_rest_have_the_strongest_second_choices():
    predictions, images = random_case(2)
    chosen = choose_examples(predictions, images, count=8)["indices"].tolist()
    probability, best = predictions.logits.double().softmax(1).topk(2, dim=1)
    pairs = [tuple(best[row].tolist()) for row in chosen[4:]]
    assert len(set(pairs)) == 4
    weakest = min(probability[row, 1] for row in chosen[4:])
    for row in set(range(80)) - set(chosen):
        assert probability[row, 1] <= weakest or tuple(best[row].tolist()) in pairs


@pytest.mark.parametrize(("images_in_all", "classes"), [(1, 2), (3, 3), (5, 1)])
def test_few_images_give_few_examples(images_in_all, classes):
    examples = choose_examples(*random_case(3, images_in_all, classes))
    assert 1 <= len(examples["labels"]) <= images_in_all


def test_images_without_finite_logits_are_left_out():
    predictions, images = random_case(4)
    predictions.logits[::2, 1] = torch.nan
    assert (choose_examples(predictions, images)["indices"] % 2 == 1).all()
    predictions.logits[:] = torch.inf
    assert choose_examples(predictions, images)["logits"].shape == (0, 5)


def test_signals_are_chosen_as_images_are():
    predictions, images = random_case(5)
    signals = torch.randn(len(images), 2, 1, 9)
    found, chosen = choose_examples(predictions, signals), choose_examples(predictions, images)
    assert torch.equal(found["images"], signals[chosen["indices"]])


@pytest.mark.parametrize(
    "images", [torch.zeros(80, 1, 4, 4), torch.zeros(79, 1, 4, 4).byte(), torch.zeros(80, 4).byte()]
)
def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(ValueError, match="images is"):
        choose_examples(random_case(5)[0], images)
