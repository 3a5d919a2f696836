"""Disparity learning: every term by explicit loops in float64, its gradients, whose codes are swapped."""

import cmath
import math

import pytest
import torch
from safetensors.torch import load_file

from icckd.data import Batches
from icckd.errors import Interrupted, UserError
from icckd.experiment import Experiment, RunFolder
from icckd.experiment.progress import no_progress
from icckd.methods import METHODS, Network, Outputs, Samples, TrainingSet
from icckd.methods import EvaluationSet as WindowsToTest
from icckd.methods.spectrum import Spectrum, SpectrumSettings, magnitudes, partners, reverse
from icckd.models import build_model, load_model
from icckd.settings import DataSettings, Settings, TeacherLossSettings, TeacherSettings
from icckd.training import Checkpoint, TeacherTask, Training
from tests.training.test_loop import fit, without_time

CLASSES, ROWS, WINDOWS, DIM, SHAPE = 3, 11, 30, 5, (2, 1, 10)
WEIGHTS = {"reconstruction": 0.7, "spectrum": 0.3, "adversarial": 0.4, "swap": 0.6}


def make(people, seed=0, **settings):
    """The method, in float64, made ready for windows of these people."""
    torch.manual_seed(seed)
    method = Spectrum(SpectrumSettings(width=3, **settings), Network(DIM, CLASSES, {}), "auto")
    method.prepare(TrainingSet(torch.zeros(len(people), dtype=torch.int64), SHAPE, people=people))
    return method.double()


def random_batch(seed):
    """Windows of four people, called by numbers of their own, and a linear network that judges them."""
    random = torch.Generator().manual_seed(seed)
    people = torch.tensor([7, -2, 40, 9])[torch.randint(4, (WINDOWS,), generator=random)]
    people[:4] = torch.tensor([7, -2, 40, 9])
    labels = torch.randint(CLASSES, (ROWS,), generator=random)
    indices = torch.randperm(WINDOWS, generator=random)[:ROWS]
    images = torch.randn(ROWS, *SHAPE, generator=random, dtype=torch.float64)
    trunk = torch.randn(math.prod(SHAPE), DIM, generator=random, dtype=torch.float64, requires_grad=True)
    classifier = torch.randn(DIM, CLASSES, generator=random, dtype=torch.float64, requires_grad=True)

    def ask(windows, stages=()):
        features = windows.flatten(1) @ trunk.detach()
        return Outputs(features, features @ classifier.detach(), {})

    features = images.flatten(1) @ trunk
    outputs = Outputs(features, features @ classifier, {})
    samples = Samples(labels, indices, progress=0.3, images=images, ask=ask)
    return outputs, samples, people, (trunk, classifier)


def next_of_another(labels, people):
    """The partner of each row, looked for row by row."""
    count, found = len(labels), []
    for i in range(count):
        others = [(i + step) % count for step in range(1, count)]
        fitting = [j for j in others if labels[j] == labels[i] and people[j] != people[i]]
        found.append(fitting[0] if fitting else -1)
    return found


def spectrum_of(signal):
    """|FFT| of a list of numbers, by its definition."""
    n = len(signal)
    return [
        abs(sum(x * cmath.exp(-2j * math.pi * k * t / n) for t, x in enumerate(signal))) / math.sqrt(n)
        for k in range(n // 2 + 1)
    ]


def minus_log(logits, label):
    return logits.logsumexp(0) - logits[label]


def close(found, expected):
    torch.testing.assert_close(found.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_the_partner_is_the_next_of_the_class_that_is_of_another_person(seed):
    random = torch.Generator().manual_seed(seed)
    rows, classes, persons = (int(torch.randint(1, most, (), generator=random)) for most in (24, 5, 5))
    labels = torch.randint(classes, (rows,), generator=random)
    people = torch.randint(persons, (rows,), generator=random) - 2
    assert partners(labels, people).tolist() == next_of_another(labels.tolist(), people.tolist())


def test_a_row_alone_has_no_partner():
    assert partners(torch.tensor([4]), torch.tensor([0])).tolist() == [-1]
    assert partners(torch.tensor([0, 1, 0]), torch.tensor([3, 5, 3])).tolist() == [-1, -1, -1]


@pytest.mark.parametrize("length", [1, 7, 10])
def test_magnitudes_are_those_of_the_orthonormal_transform_along_time(length):
    windows = torch.randn(2, 3, 1, length, dtype=torch.float64)
    expected = [[spectrum_of(row) for row in window.flatten(0, 1).tolist()] for window in windows]
    close(magnitudes(windows).squeeze(2), expected)


def test_a_reversed_gradient_is_that_of_minus_the_weight():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(4, 3, dtype=torch.float64)
    there = reverse(x, 0.25)
    assert torch.equal(there, x)
    (gradient,) = torch.autograd.grad(there, x, upstream)
    close(gradient, -0.25 * upstream)


def by_hand(method, outputs, samples, people):
    """Every term but the adversarial one, as loops over windows, channels and moments; and what D says."""
    known = sorted(set(people.tolist()))
    person = [known.index(int(people[i])) for i in samples.indices]
    labels, z_p, z_d = samples.labels.tolist(), outputs.features, method.encoder(samples.images)
    partner = next_of_another(labels, person)
    terms = dict.fromkeys(("cross_entropy", "reconstruction", "spectrum", "swap"), torch.zeros((), dtype=torch.float64))
    told = torch.zeros((), dtype=torch.float64)
    for i in range(ROWS):
        decoded = method.decoder((z_p[i] + z_d[i])[None])[0]
        error, other = 0.0, 0.0
        for channel in range(SHAPE[0]):
            x, g = samples.images[i, channel, 0], decoded[channel, 0]
            error = error + sum((x[t] - g[t]) ** 2 for t in range(SHAPE[2])) / (SHAPE[0] * SHAPE[2])
            for k in range(SHAPE[2] // 2 + 1):
                angle = 2 * math.pi * k * torch.arange(SHAPE[2], dtype=torch.float64) / SHAPE[2]
                size = [((w @ angle.cos()) ** 2 + (w @ angle.sin()) ** 2).sqrt() for w in (x, g)]
                other = other + (size[0] - size[1]).abs() / math.sqrt(SHAPE[2]) / (SHAPE[0] * (SHAPE[2] // 2 + 1))
        hot = [1.0 if c == labels[i] else 0.0 for c in range(CLASSES)]
        given = torch.cat([z_p[i], torch.tensor(hot, dtype=torch.float64)])
        told = told + minus_log(method.discriminator.layers(given), person[i]) / ROWS
        swapped = 0.0
        if partner[i] >= 0:
            window = method.decoder((z_p[i] + z_d[partner[i]])[None])
            swapped = minus_log(samples.ask(window).logits[0], labels[i])
        found = (minus_log(outputs.logits[i], labels[i]), error, other, swapped)
        terms = {name: terms[name] + value / ROWS for name, value in zip(terms, found, strict=True)}
    return terms, told


def test_every_term_and_its_gradients_are_those_of_explicit_loops():
    outputs, samples, people, network = random_batch(3)
    method = make(people, **WEIGHTS)
    losses = method(outputs, samples)
    terms, told = by_hand(method, outputs, samples, people)
    weighted = terms["cross_entropy"] + sum(WEIGHTS[name] * terms[name] for name in terms if name in WEIGHTS)
    for name, value in {**terms, "adversarial": told, "loss": weighted + told}.items():
        close(losses[name], value)
    own = list(method.parameters())
    found = torch.autograd.grad(losses["loss"], [*own, *network], retain_graph=True)
    plain = torch.autograd.grad(weighted, [*own, *network], retain_graph=True, allow_unused=True)
    adversarial = torch.autograd.grad(told, [*own, *network], allow_unused=True)
    # The discriminator learns to tell the person; what it would have of the trunk comes back reversed.
    reversal = -WEIGHTS["adversarial"] * math.tanh(10 * 0.3 / 2)
    factors = [1.0] * len(own) + [reversal] * len(network)
    for got, first, second, factor in zip(found, plain, adversarial, factors, strict=True):
        nothing = torch.zeros_like(got)
        close(got, (nothing if first is None else first) + factor * (nothing if second is None else second))


def test_the_network_learns_nothing_from_its_judgement_of_swapped_windows_but_what_its_codes_bring():
    outputs, samples, people, (trunk, classifier) = random_batch(5)
    method = make(people)
    swap = method(outputs, samples)["swap"]
    assert swap > 0
    gradients = torch.autograd.grad(swap, [trunk, classifier, *method.parameters()], allow_unused=True)
    assert gradients[0].abs().sum() > 0
    assert gradients[1] is None
    named = dict(zip((name for name, _ in method.named_parameters()), gradients[2:], strict=True))
    assert {name.split(".")[0] for name, gradient in named.items() if gradient is not None} == {"encoder", "decoder"}


def test_at_first_nothing_is_hidden_from_the_discriminator():
    outputs, samples, people, (trunk, _) = random_batch(6)
    losses = make(people, reconstruction=0.0, spectrum=0.0, swap=0.0)(outputs, samples._replace(progress=0.0))
    (gradient,) = torch.autograd.grad(losses["loss"], trunk, retain_graph=True)
    close(gradient, torch.autograd.grad(losses["cross_entropy"], trunk)[0])


@pytest.mark.parametrize(("people", "wanted"), [(None, "data.name should be signals"), ([3] * 6, "two people or more")])
def test_windows_of_nobody_or_of_one_are_refused(people, wanted):
    method = METHODS.find("spectrum", "method")(SpectrumSettings(), Network(DIM, CLASSES, {}), "auto")
    known = TrainingSet(
        torch.zeros(6, dtype=torch.int64), SHAPE, None, None if people is None else torch.tensor(people)
    )
    with pytest.raises(UserError, match=f"teacher.loss.method is spectrum.*{wanted}"):
        method.prepare(known)


def training(**settings):
    """That of a small network on random windows of four people, by images of whole numbers."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    labels, people = (torch.randint(most, (WINDOWS,), generator=random) for most in (CLASSES, 4))
    loss = TeacherLossSettings(method="spectrum", spectrum=SpectrumSettings(width=4))
    chosen = TeacherSettings(loss=loss, epochs=2, batch_size=8, learning_rate=0.02, **settings)
    known = TrainingSet(labels, SHAPE, people=people)
    task = TeacherTask(build_model("convnet-small", SHAPE[0], CLASSES, SHAPE[2]), chosen, WINDOWS, known=known)
    batches = Batches(
        torch.randint(256, (WINDOWS, *SHAPE), dtype=torch.uint8, generator=random),
        labels,
        batch_size=8,
        mean=[0.5, 0.5],
        std=[0.25, 0.25],
        augmentation=None,
        views=1,
        shuffle=True,
        seed=0,
        device="cpu",
        drop_last=False,
    )
    return Training(task, batches, chosen)


@pytest.mark.parametrize("settings", [{}, {"autocast": True}, {"accumulate": 2}], ids=str)
def test_every_part_of_the_loss_is_learned_from(settings):
    trained = training(**settings)
    trained.epoch = trained.task.epoch = 1
    before = {name: x.clone() for name, x in trained.task.named_parameters()}
    trained.train_step(next(iter(trained.batches.epoch(1))))
    for name, parameter in trained.task.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), name


def test_stopped_and_resumed_ends_in_the_same_bits(tmp_path):
    whole = fit(training(), tmp_path / "whole", every=0)
    for steps_further in (2, 3):  # In the middle of the first epoch, and of the second.
        resumed = training()
        if (tmp_path / "parts").exists():
            resumed.restore(Checkpoint(tmp_path / "parts").load())
        with pytest.raises(Interrupted):
            fit(resumed, tmp_path / "parts", steps_further, every=0)
    resumed = training()
    resumed.restore(Checkpoint(tmp_path / "parts").load())
    fit(resumed, tmp_path / "parts", every=0)
    first, second = whole.task.state_dict(), resumed.task.state_dict()
    assert any(name.startswith("method.decoder") for name in first)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert without_time(resumed.history) == without_time(whole.history)


def test_the_swap_test_counts_windows_that_another_person_of_the_class_may_lend_a_code():
    method, rows = make(torch.arange(4)), 23
    random = torch.Generator().manual_seed(8)
    windows = torch.randn(rows, *SHAPE, generator=random, dtype=torch.float64)
    labels, people = (torch.randint(most, (rows,), generator=random) for most in (CLASSES, 3))
    labels[:3], people[:3] = 2, torch.arange(3)
    people[labels == 1] = 0  # All of class 1 are of one person.
    people = 2 * people
    trunk = torch.randn(math.prod(SHAPE), DIM, generator=random, dtype=torch.float64)

    def ask(given):
        features = given.flatten(1) @ trunk
        return Outputs(features, features[:, :CLASSES], {})

    found = method.findings(WindowsToTest(windows.split(9), labels, ask, people))
    z_p, z_d = ask(windows).features, method.encoder(windows).detach()
    own, swapped = [], []
    for i, j in enumerate(next_of_another(labels, people)):
        if j >= 0:
            own.append(ask(method.decoder((z_p[i] + z_d[i])[None])).logits.argmax() == labels[i])
            swapped.append(ask(method.decoder((z_p[i] + z_d[j])[None])).logits.argmax() == labels[i])
    assert 0 < len(own) < rows
    expected = {"reconstruction_accuracy": sum(own) / len(own), "swap_accuracy": sum(swapped) / len(own)}
    assert found.numbers == pytest.approx({name: float(value) for name, value in expected.items()})
    assert torch.equal(found.tensors["class_codes"], z_p.float())
    torch.testing.assert_close(found.tensors["disparity_codes"], z_d.float())
    assert torch.equal(found.tensors["labels"], labels)
    assert torch.equal(found.tensors["people"], people // 2)


def test_without_pairs_there_is_nothing_to_swap():
    method = make(torch.arange(4))
    test = WindowsToTest(
        [torch.zeros(2, *SHAPE, dtype=torch.float64)], torch.arange(2), no_answer, torch.tensor([1, 1])
    )
    assert all(math.isnan(value) for value in method.findings(test).numbers.values())


def no_answer(windows):
    return Outputs(windows.new_zeros(len(windows), DIM), windows.new_zeros(len(windows), CLASSES), {})


def test_a_run_keeps_the_network_alone_and_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr("icckd.experiment.experiment.write_report", lambda path: None)
    loss = TeacherLossSettings(method="spectrum")
    chosen = TeacherSettings(arch="signal-convnet-small", epochs=1, warmup_epochs=0, loss=loss)
    settings = Settings(data=DataSettings(name="signals", train_fraction=0.1), teacher=chosen)
    experiment = Experiment(settings, ("teacher",), progress=no_progress)
    summary = experiment.run(RunFolder(tmp_path))["teacher"]
    assert 0 <= summary["swap_accuracy"] <= 1
    assert 0 < summary["reconstruction_accuracy"] <= 1
    data, found = experiment.data, load_file(tmp_path / "teacher" / "findings.safetensors")
    model, description = load_model(tmp_path / "teacher")
    assert all(name.startswith(("trunk.", "classifier.")) for name in model.state_dict())
    assert torch.equal(found["labels"], data.test_labels)
    assert torch.equal(found["people"], data.people.test - data.people.test.min())
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (description.mean, description.std))
    with torch.no_grad():
        features, _ = model.eval()((data.test_images - mean) / std)
    torch.testing.assert_close(found["class_codes"], features, rtol=1e-4, atol=1e-4)
