"""What every distillation method promises: gradients where they belong, one look at the teacher, its weight."""

import pytest
import torch

from icckd import reference
from icckd.errors import UserError
from icckd.methods import METHODS, Network, Outputs, Pair, StudentMethod, settings_type
from icckd.methods.attention import Attention, AttentionSettings, pairs_of_equal_resolution
from icckd.settings import StudentLossSettings, methods_of
from tests.methods.conftest import Distillation

NAMES = list(methods_of(StudentMethod))


def test_there_are_the_published_ones():
    assert {
        *("kd", "dkd", "nkd", "dist", "ttm", "wttm", "rkd", "similarity-preserving", "pkt", "attention", "hint", "crd"),
        "multi-head",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_student_and_parts_learn_and_the_teacher_stays(distillation, name):
    task, batch = distillation.task(name), distillation.batch()
    before = {key: value.clone() for key, value in distillation.teacher.state_dict().items()}
    losses = task(batch)
    assert losses[name].isfinite()
    assert losses[name].item() > 0
    (losses[name] + losses["cross_entropy"]).backward()
    trained = dict(task.named_parameters())
    assert {f"model.{key}" for key, _ in distillation.student.named_parameters()} <= trained.keys()
    for key, parameter in trained.items():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert all(parameter.grad is None for parameter in distillation.teacher.parameters())
    task.after_step(torch.tensor(True))
    after = distillation.teacher.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_alone_reaches_the_student(distillation, name):
    task, batch = distillation.task(name), distillation.batch()
    task(batch)[name].backward()
    gradient = sum(p.grad.abs().sum() for p in distillation.student.parameters() if p.grad is not None)
    assert gradient > 0


STAGES = ("stage1", "stage2", "stage3")
DEFINITIONS = {
    "kd": lambda s, t, y: reference.kd_kl(s.logits, t.logits, temperature=4),
    "dkd": lambda s, t, y: reference.dkd(s.logits, t.logits, y, alpha=1, beta=8, temperature=4),
    "nkd": lambda s, t, y: reference.nkd(s.logits, t.logits, y, gamma=1.5, temperature=1),
    "dist": lambda s, t, y: reference.dist(s.logits, t.logits, beta=1, gamma=1, temperature=4),
    "ttm": lambda s, t, y: reference.ttm(s.logits, t.logits, gamma=0.1),
    "wttm": lambda s, t, y: reference.ttm(s.logits, t.logits, gamma=0.2, weighted=True),
    "rkd": lambda s, t, y: (
        25 * reference.rkd_distance(s.features, t.features) + 50 * reference.rkd_angle(s.features, t.features)
    ),
    "similarity-preserving": lambda s, t, y: reference.similarity_preserving(s.maps["stage3"], t.maps["stage3"]),
    "pkt": lambda s, t, y: reference.pkt(s.features, t.features),
    "attention": lambda s, t, y: sum(reference.attention_transfer(s.maps[name], t.maps[name]) for name in STAGES),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_loss_is_the_definition_s(distillation, name):
    task, batch = distillation.task(name).eval(), distillation.batch()
    with torch.no_grad():
        student, teacher = (double(model, batch) for model in (distillation.student, distillation.teacher))
        expected = DEFINITIONS[name](student, teacher, batch.labels)
        found = task(batch)[name]
    torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=1e-7)


def double(model, batch):
    features, logits, maps = model(batch.views[0], stages=STAGES)
    return Outputs(features.double(), logits.double(), {name: x.double() for name, x in maps.items()})


def test_methods_are_summed_with_their_weights_and_one_look_at_the_teacher(distillation, monkeypatch):
    hint, attention = {"weight": 3.0, "warmup_epochs": 4}, {"weight": 7.0}
    task = distillation.task("kd+rkd+attention+hint", hint=hint, attention=attention)
    looks, forward = [], distillation.teacher.forward

    def counted(*arguments, **options):
        looks.append(torch.is_inference_mode_enabled())
        return forward(*arguments, **options)

    monkeypatch.setattr(distillation.teacher, "forward", counted)
    task.epoch = 1
    losses = task(distillation.batch())
    assert looks == [True]
    expected = losses["cross_entropy"] + losses["kd"] + losses["rkd"] + 7 * losses["attention"] + 1.5 * losses["hint"]
    torch.testing.assert_close(losses["loss"], expected)


def test_none_is_cross_entropy_without_a_look_at_the_teacher(distillation, monkeypatch):
    task = distillation.task("none")
    monkeypatch.setattr(distillation.teacher, "forward", None)
    losses = task(distillation.batch())
    assert losses.keys() == {"loss", "cross_entropy"}
    assert losses["loss"] == losses["cross_entropy"]


@pytest.mark.parametrize(
    ("method", "weights", "cross_entropy"),
    [
        ("none", {}, 1.0),
        ("kd", {"kd": 0.9}, 0.1),
        ("kd+rkd", {"kd": 1.0, "rkd": 1.0}, 1.0),
        ("dkd", {"dkd": 1.0}, 1.0),
        ("dist", {"dist": 2.0}, 1.0),
        ("ttm", {"ttm": 45.0}, 1.0),
        ("wttm+crd", {"wttm": 4.0, "crd": 0.8}, 1.0),
        ("similarity-preserving", {"similarity-preserving": 3000.0}, 1.0),
        ("pkt", {"pkt": 30000.0}, 1.0),
        ("attention", {"attention": 1000.0}, 1.0),
        ("hint", {"hint": 100.0}, 1.0),
        ("multi-head", {"multi-head": 1.0}, 0.0),
        ("multi-head+kd", {"multi-head": 1.0, "kd": 1.0}, 0.0),
    ],
)
def test_the_published_weights(method, weights, cross_entropy):
    settings = StudentLossSettings(method=method)
    assert settings.weights() == weights
    assert settings.weight_of_cross_entropy() == cross_entropy
    given = StudentLossSettings(method=method, cross_entropy_weight=0.3)
    assert given.weight_of_cross_entropy() == 0.3


def test_a_weight_that_is_given_is_in_force_alone_and_in_a_sum():
    for method in ("kd", "kd+rkd"):
        settings = StudentLossSettings(method=method)
        settings.kd.weight = 0.4
        assert settings.weights()["kd"] == 0.4
        assert settings.in_force()["kd"]["weight"] == 0.4


def test_what_is_in_force_names_the_methods_in_use_only():
    found = StudentLossSettings(method="similarity-preserving+dkd").in_force()
    assert list(found) == ["cross_entropy_weight", "similarity_preserving", "dkd", "backend"]
    assert found["dkd"] == {"weight": 1.0, "warmup_epochs": 20, "alpha": 1.0, "beta": 8.0, "temperature": 4.0}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("kdd", r"'kdd'; it should be one of attention, .*crd.*none"),
        ("kd+", r"'kd\+'; it should be one of .*several joined by \+"),
        ("kd+kd", r".*names kd twice"),
        ("kd+none", r".*none stands alone"),
        ("intra-class", "'intra-class'; it should be one of attention"),
    ],
)
def test_a_method_that_is_none_is_refused(method, words):
    with pytest.raises(UserError, match=rf"^student\.loss\.method is {words}"):
        StudentLossSettings(method=method).method_classes()


def test_the_weight_rises_over_the_first_epochs():
    settings = StudentLossSettings().dkd
    assert [settings.warmth(epoch) for epoch in (0, 9, 19, 20, 99)] == [0.05, 0.5, 1, 1, 1]
    assert StudentLossSettings().kd.warmth(0) == 1


def test_stages_are_paired_by_resolution_from_the_last_back():
    def maps(*sizes):
        return {f"stage{number}": (3, size, size) for number, size in enumerate(sizes, start=1)}

    pairs = pairs_of_equal_resolution
    assert pairs(maps(8, 4, 2), maps(8, 4, 2)) == [(f"stage{n}",) * 2 for n in (1, 2, 3)]
    assert pairs(maps(4, 2), maps(8, 4, 4, 2)) == [("stage1", "stage3"), ("stage2", "stage4")]
    assert pairs(maps(8, 4, 2), maps(4, 4, 1)) == [("stage2", "stage2")]
    assert pairs(maps(8, 4), maps(7, 3)) == []


def test_networks_without_a_common_resolution_are_refused_by_attention():
    own, other = (Network(3, 5, {"stage1": (4, size, size)}) for size in (5, 6))
    with pytest.raises(UserError, match=r"attention needs a stage of equal resolution .* student's are 5×5, .* 6×6"):
        Attention(AttentionSettings(), Pair(own, other, torch.zeros(1)), "auto")


@pytest.mark.parametrize("name", ["attention", "hint", "multi-head", "similarity-preserving"])
def test_what_compares_stages_refuses_networks_without_them(name):
    bare = Network(3, 5, {})
    method = METHODS.find(name, "method")
    with pytest.raises(UserError, match=r"stage"):
        method(settings_type(method)(), Pair(bare, bare, torch.arange(5)), "auto")


def test_hint_averages_the_finer_map_and_names_an_unknown_stage():
    pair = Distillation("convnet-small", "resnet8", size=16)  # Stage 2: 4×4 against 8×8.
    task, batch = pair.task("hint").eval(), pair.batch()
    with torch.no_grad():
        found = task(batch)["hint"]
        own = pair.student(batch.views[0], stages=("stage2",))[2]["stage2"]
        other = pair.teacher(batch.views[0], stages=("stage2",))[2]["stage2"]
        guess = task.methods["hint"].regressor(own)
        expected = (guess - other.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))).square().mean()
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match=r"student\.loss\.hint\.stage is 'stage9'; .* stage1, stage2, stage3"):
        pair.task("hint", hint={"stage": "stage9"})


def test_multi_head_is_its_formula(distillation):
    task = distillation.task("multi-head", multi_head={"beta": 0.3, "temperature": 3.0}).eval()
    method, batch = task.methods["multi-head"], distillation.batch()
    stages = ("stage1", "stage2")
    with torch.no_grad():
        _, own, own_maps = distillation.student(batch.views[0], stages=stages)
        _, other, other_maps = distillation.teacher(batch.views[0], stages=stages)
        found = task(batch)["multi-head"].double()

        def hard(logits):
            return -logits.double().log_softmax(1)[torch.arange(len(logits)), batch.labels].mean()

        def kd(s, t):
            q, p = ((x.double() / 3).softmax(1) for x in (t, s))
            return 0.1 * hard(s) + 0.9 * 9 * (q * (q / p).log()).sum(1).mean()

        expected = kd(own, other)
        for number, stage in enumerate(stages):
            s, t = method.student_heads[number](own_maps[stage]), method.teacher_heads[number](other_maps[stage])
            expected = expected + hard(t) + 0.3 * kd(s, t)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_the_teacher_s_heads_learn_from_labels_only(distillation):
    task, batch = distillation.task("multi-head"), distillation.batch()
    head = task.methods["multi-head"].teacher_heads
    task(batch)["multi-head"].backward()
    found = [p.grad.clone() for p in head.parameters()]
    task.zero_grad()
    other = distillation.task("multi-head", multi_head={"beta": 0.0})
    other.methods["multi-head"].load_state_dict(task.methods["multi-head"].state_dict())
    other(batch)["multi-head"].backward()
    for one, two in zip(found, other.methods["multi-head"].teacher_heads.parameters(), strict=True):
        torch.testing.assert_close(one, two.grad, rtol=1e-4, atol=1e-6)


def test_multi_head_takes_stages_by_name(distillation):
    named = {"student_stages": ["stage1", "stage3"], "teacher_stages": ["stage2", "stage1"]}
    task = distillation.task("multi-head", multi_head=named)
    method = task.methods["multi-head"]
    assert method.student_stages == ("stage1", "stage3")
    assert method.teacher_stages == ("stage2", "stage1")
    widths = [
        distillation.student(torch.zeros(1, 3, 16, 16), stages=["stage1", "stage3"])[2][n].shape[1]
        for n in ("stage1", "stage3")
    ]
    assert [head[0].in_channels for head in method.student_heads] == widths
    assert task(distillation.batch())["loss"].isfinite()
    one = distillation.task("multi-head", multi_head={"student_stages": ["stage3"]}).methods["multi-head"]
    assert (one.student_stages, one.teacher_stages) == (("stage3",), ("stage2",))


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"student_stages": ["stage9"]}, "student_stages names 'stage9'; the student's stages are stage1, stage2"),
        ({"teacher_stages": ["layer"]}, "teacher_stages names 'layer'; the teacher's stages are stage1"),
        ({"student_stages": ["stage1", "stage2"], "teacher_stages": ["stage1"]}, "pairs 2 stages .* with 1 of"),
        ({"student_stages": ["stage1", "stage2", "stage3"]}, "pairs 3 stages .* with 2 of the teacher"),
    ],
)
def test_multi_head_refuses_stages_that_do_not_fit(distillation, named, words):
    with pytest.raises(UserError, match=rf"^student\.loss\.multi_head.*{words}"):
        distillation.task("multi-head", multi_head=named)


@pytest.mark.parametrize(
    "arch", ["resnet8x4", "wrn_16_1", "vgg8", "mobilenetv2_half", "shufflenetv1", "shufflenetv2", "resnet18"]
)
def test_multi_head_serves_every_kind_of_network(arch):
    pair = Distillation("convnet-small", arch, size=16)
    before = {key: value.clone() for key, value in pair.teacher.state_dict().items()}
    task = pair.task("multi-head")
    task(pair.batch())["loss"].backward()
    assert all(p.grad is None for p in pair.teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in pair.teacher.state_dict().items())
    heads = task.methods["multi-head"].teacher_heads
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads.parameters())
