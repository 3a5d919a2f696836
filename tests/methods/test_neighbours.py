"""Teachers beside the paper's: each loss against its formula in float64, and what they keep from step to step."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax, normalize, one_hot

from icckd.data import Batch
from icckd.methods import METHODS, Network, Outputs, Samples, TrainingSet, settings_type
from icckd.methods.wsc import log_one_minus_softmax
from icckd.models import build_model
from icckd.settings import TeacherLossSettings, TeacherSettings
from icckd.training import TeacherTask

CLASSES, ROWS, DIM = 4, 14, 6
YES, NO = torch.tensor(True), torch.tensor(False)


def make(name, **settings):
    torch.manual_seed(len(name))
    kind = METHODS.find(name, "method")
    return kind(settings_type(kind)(**settings), Network(DIM, CLASSES, {}), "auto").double()


def answers(views, seed=3, progress=0.25):
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(views * ROWS, DIM, generator=random, dtype=torch.float64)
    logits = 2 * torch.randn(views * ROWS, CLASSES, generator=random, dtype=torch.float64)
    labels = torch.randint(CLASSES, (ROWS,), generator=random)
    return Outputs(features, logits, {}), Samples(labels, torch.arange(ROWS) + 5, progress=progress)


def close(found, expected):
    torch.testing.assert_close(found.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_supcon_contrasts_both_views_and_spreads_the_first(spread):
    method = make("supcon", spread=spread, temperature=0.2, spread_temperature=0.5)
    outputs, samples = answers(2)
    losses = method(outputs, samples)
    z, labels = normalize(method.projection(outputs.features)), samples.labels.repeat(2)
    similarity = z @ z.T
    total = 0.0
    for i in range(2 * ROWS):
        others = [j for j in range(2 * ROWS) if j != i]
        own = [j for j in others if labels[j] == labels[i]]
        total += torch.logsumexp(similarity[i, others] / 0.2, 0) - similarity[i, own].mean() / 0.2
    expected = total / (2 * ROWS) + cross_entropy(outputs.logits, labels)
    close(losses["supervised_contrast"], total / (2 * ROWS))
    assert ("intra_class" in losses) == (spread > 0)
    if spread:
        within = 0.0
        for i in range(ROWS):
            own = [j for j in range(ROWS) if j != i and labels[j] == labels[i]]
            terms = torch.cat([z[i] @ z[ROWS + i].unsqueeze(1), similarity[i, own]]) / 0.5
            within += terms.logsumexp(0) - terms[0]
        close(losses["intra_class"], within / ROWS)
        expected = expected + spread * within / ROWS
    close(losses["loss"], expected)


def test_supcon_s_trunk_learns_nothing_from_the_classifier():
    model = build_model("convnet-small", 1, CLASSES, 8)
    task = TeacherTask(model, TeacherSettings(loss=TeacherLossSettings(method="supcon")), ROWS)
    images = torch.randn(8, 1, 8, 8)
    batch = Batch((images, images + 0.1), torch.arange(8) % CLASSES, torch.arange(8))
    losses = task(batch)
    losses["cross_entropy"].backward(retain_graph=True)
    assert all(p.grad is None for p in model.trunk.parameters())
    assert model.classifier.weight.grad.abs().sum() > 0
    losses["loss"].backward()
    assert all(p.grad is not None for p in model.trunk.parameters())
    plain = TeacherTask(model, TeacherSettings(), ROWS)
    model.zero_grad()
    plain(batch)["cross_entropy"].backward()
    assert all(p.grad is not None for p in model.trunk.parameters())


@pytest.mark.parametrize("centers", ["learned", "average"])
def test_center_adds_the_contrast_with_the_centres(centers):
    method = make("center", centers=centers, weight=0.3, scale=8.0, margin=0.1, pull=0.5)
    assert (len(list(method.parameters())) == 1) == (centers == "learned")
    method.centers.data = torch.randn(CLASSES, DIM, dtype=torch.float64)
    outputs, samples = answers(1)
    cosine = normalize(outputs.features) @ normalize(method.centers.detach()).T
    own, expected = one_hot(samples.labels, CLASSES), []
    for row, is_own in zip(cosine, own.bool(), strict=True):
        mine = torch.exp(8.0 * (row[is_own] - 0.1))
        pulled = torch.exp(8.0 * (row[is_own] - 0.1) + 2 * 0.5 * row[is_own])
        expected.append(-(pulled / (mine + torch.exp(8.0 * row[~is_own]).sum())).log())
    losses = method(outputs, samples)
    close(losses["center_contrast"], torch.cat(expected).mean())
    close(losses["loss"], cross_entropy(outputs.logits, samples.labels) + 0.3 * torch.cat(expected).mean())


def test_centres_follow_their_classes_where_the_step_was_taken():
    method = make("center", centers="average", momentum=0.75)
    outputs, samples = answers(1)
    labels = samples.labels.masked_fill(samples.labels == 2, 1)  # Of class 2 there is no image.
    means = torch.stack([normalize(normalize(outputs.features[labels == c]).mean(0), dim=0) for c in (0, 1, 3)])
    for taken, expected in ((NO, torch.zeros_like(means)), (YES, means)):
        method(outputs, samples._replace(labels=labels))
        method.after_step(taken)
        close(method.centers[[0, 1, 3]], expected)
        assert not method.centers[2].any()
    other = Outputs(outputs.features.flip(1), outputs.logits, {})
    method(other, samples._replace(labels=labels))
    method.after_step(YES)
    news = torch.stack([normalize(normalize(other.features[labels == c]).mean(0), dim=0) for c in (0, 1, 3)])
    close(method.centers[[0, 1, 3]], normalize(0.75 * means + 0.25 * news))


@pytest.mark.parametrize("augmented", [True, False])
def test_hierarchical_adds_the_similarity_loss(augmented):
    method = make("hierarchical", augmented=augmented, weight=0.4, gamma=0.3, rho=3.0, positive_scale=1.5,
                  negative_scale=9.0)  # fmt: skip
    assert method.views == 1 + augmented
    outputs, samples = answers(method.views)
    z = normalize(outputs.features)
    labels, s = samples.labels, z[:ROWS] @ z[:ROWS].T
    classes = sorted(set(labels.tolist()))
    pairs = {(a, b): [s[i, j] for i in range(ROWS) for j in range(ROWS) if i != j and (labels[i], labels[j]) == (a, b)]
             for a in classes for b in classes}  # fmt: skip
    similar = {key: torch.stack(of).mean() for key, of in pairs.items() if of}
    low, high = min(similar.values()), max(similar.values())
    scaled = {key: 0.2 * (value - low) / (high - low) for key, value in similar.items()}
    total = 0.0
    for i in range(ROWS):
        a = labels[i].item()
        own = [j for j in range(ROWS) if j != i and labels[j] == a]
        others = [j for j in range(ROWS) if labels[j] != a]
        if own:
            total += torch.log1p(sum(torch.exp(-1.5 * (s[i, j] - 0.3 - scaled[a, a])) for j in own)) / 1.5
        total += torch.log1p(sum(torch.exp(9 * (s[i, j] - 0.3 + scaled[a, labels[j].item()])) for j in others)) / 9
        if augmented:
            least = min(pairs[a, a]) if pairs[a, a] else torch.tensor(1.0)
            total += torch.log1p(torch.exp(-3 * (z[i] @ z[ROWS + i] - least))) / 3
    losses = method(outputs, samples)
    close(losses["hierarchical_similarity"], total / ROWS)
    close(losses["loss"], cross_entropy(outputs.logits[:ROWS], labels) + 0.4 * total / ROWS)


def spectral(u, v, q, alpha, beta, kappa):
    """The contrast, pair by pair."""
    rows, z = len(u), torch.cat([u, v])
    weights = (q @ q.T).fill_diagonal_(0)
    same = sum((weights * (x @ y.T)).sum() for x, y in ((u, v), (u, u), (v, v))) / 3 / (rows * (rows - 1))
    repelled = (z @ z.T).square().fill_diagonal_(0).sum() / (2 * rows * (2 * rows - 1))
    return -2 * alpha * (u * v).sum(1).mean() - 2 * beta * same + kappa * (alpha + beta / q.shape[1]) ** 2 * repelled


def test_wsc_learns_from_noisy_labels_through_the_transition():
    method = make("wsc", weight=0.6, alpha=1.5, beta=5.0, kappa=2.0, volume=0.03, balance=0.2)
    method.transition.change.data.normal_()
    outputs, samples = answers(3)
    w, one, two = outputs.logits.unflatten(0, (3, ROWS)).softmax(2)
    raw = torch.sigmoid(method.transition.change + method.transition.begin)
    noise = torch.stack([torch.stack([raw.new_ones(()) if a == b else raw[a, b] for b in range(CLASSES)])
                         for a in range(CLASSES)])  # fmt: skip
    noise = noise / noise.sum(1, keepdim=True)
    labelled = -torch.stack([(w[i] @ noise)[samples.labels[i]].log() for i in range(ROWS)]).mean()
    consistent = -(w.detach() * (one.log() + two.log())).sum(1).mean()
    balance = -w.mean(0).log().sum() / CLASSES
    u, v = normalize(method.projection(outputs.features[ROWS:])).unflatten(0, (2, ROWS))
    contrast = spectral(u, v, w.detach(), 1.5, 5.0, 2.0)
    losses = method(outputs, samples)
    close(losses["contrast"], contrast)
    volume = torch.linalg.det(noise).abs().log()
    expected = labelled + consistent + 0.03 * volume + 0.2 * balance + 0.25 * 0.6 * contrast
    close(losses["loss"], expected)
    parameters = list(method.parameters())
    for found, wanted in zip(*(torch.autograd.grad(x, parameters) for x in (losses["loss"], expected)), strict=True):
        close(found, wanted)


def test_half_of_a_row_of_the_transition_begins_on_the_diagonal():
    for classes in (2, 3, 10, 100):
        kind = METHODS.find("wsc", "method")
        matrix = kind(settings_type(kind)(), Network(DIM, classes, {}), "auto").transition.matrix()
        share = 0.5 if classes > 2 else 2 / 3
        torch.testing.assert_close(matrix.diagonal(), torch.full((classes,), share))
        torch.testing.assert_close(matrix.sum(1), torch.ones(classes))


def test_wsc_learns_from_candidates_and_remembers_which_are_likely():
    method = make("wsc", weight=0.6)
    random = torch.Generator().manual_seed(1)
    sets = torch.rand(30, CLASSES, generator=random) < 0.5
    sets[torch.arange(30), torch.randint(CLASSES, (30,), generator=random)] = True
    method.prepare(TrainingSet(torch.zeros(30, dtype=torch.int64), (1, 8, 8), sets))
    method.double()
    outputs, samples = answers(3)
    p = outputs.logits.unflatten(0, (3, ROWS)).softmax(2)
    allowed = sets[samples.indices]
    likely = method.confidence[samples.indices]
    torch.testing.assert_close(likely, allowed / allowed.sum(1, keepdim=True).double(), rtol=1e-6, atol=0)
    u, v = normalize(method.projection(outputs.features[ROWS:])).unflatten(0, (2, ROWS))
    contrast = spectral(u, v, p[0], 1.0, 12.0, 3.0)
    before = method.confidence.clone()
    for taken in (NO, YES):
        excluded = -sum((1 - p[view, i, c]).log() for view in range(3) for i in range(ROWS) for c in range(CLASSES)
                        if not allowed[i, c]) / (3 * ROWS)  # fmt: skip
        divergence = sum(likely[i, c] * (likely[i, c] / p[view, i, c]).log() for view in range(3) for i in range(ROWS)
                         for c in range(CLASSES) if likely[i, c] > 0) / ROWS  # fmt: skip
        close(method(outputs, samples)["loss"], excluded + 0.25 * (0.6 * contrast + divergence))
        method.after_step(taken)
        if not taken:
            assert torch.equal(method.confidence, before)
    likely = allowed * p.prod(0) ** (1 / 3)
    likely = likely / likely.sum(1, keepdim=True)
    close(method.confidence[samples.indices], likely)
    others = [i for i in range(30) if i not in samples.indices]
    assert torch.equal(method.confidence[others], before[others])
    assert "confidence" in method.state_dict()


def test_the_rest_s_probability_is_exact_where_one_class_is_all_but_sure():
    logits = torch.tensor([[60.0, 0.0, -3.0], [0.1, 0.2, 0.3], [-80.0, 0.0, 40.0]])
    exact = logits.double()
    others = torch.stack(
        [exact.masked_fill(one_hot(torch.tensor(c), 3).bool(), -math.inf).logsumexp(1) for c in range(3)], dim=1
    )
    torch.testing.assert_close(
        log_one_minus_softmax(logits).double(), others - exact.logsumexp(1, keepdim=True), rtol=1e-5, atol=1e-12
    )
    leaf = logits.requires_grad_()
    log_one_minus_softmax(leaf).sum().backward()
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", ["supcon", "center", "hierarchical", "wsc"])
def test_teachers_learn_from_every_part_of_their_loss(name):
    model = build_model("convnet-small", 1, CLASSES, 8)
    task = TeacherTask(model, TeacherSettings(loss=TeacherLossSettings(method=name)), ROWS)
    task.epoch = 3
    images = torch.randn(task.views, 8, 1, 8, 8)
    losses = task(Batch(tuple(images), torch.arange(8) % CLASSES, torch.arange(8)))
    losses["loss"].backward()
    for key, parameter in task.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert log_softmax(model(images[0])[1], 1).isfinite().all()
