"""`group` of a loss: what it covers, what is refused; and losses of distillation by it."""

import pytest
import torch
import torch.distributed as dist

from icckd import functional, reference
from icckd.exchange import Ranks
from icckd.functional import intra_class_contrastive
from tests.exchange.owner_checks import Rows, mean_over_ranks


def check_each_rank_uses_its_own_memory(here):
    rows = Rows([4, 6, 5])
    memory = torch.full((2, 4), here.rank + 1.0, dtype=torch.float64)
    memory[1, here.rank] = -1
    memory_labels = torch.tensor([0, 2])
    options = {"memory": memory, "memory_labels": memory_labels, "reduction": "none"}
    anchor, positive, labels, gate = rows.of(here.rank)
    loss = intra_class_contrastive(anchor, positive, labels, gate=gate, group=here.group, **options)
    expected = reference.intra_class_contrastive(rows.anchor, rows.positive, rows.labels, gate=rows.gate, **options)
    torch.testing.assert_close(loss, expected.split(rows.counts)[here.rank])


def check_ranks_that_disagree_all_get_an_error(here):
    x, labels = torch.ones(2, 4), torch.zeros(2, dtype=torch.long)
    with (
        torch.set_grad_enabled(here.rank == 0),
        pytest.raises(RuntimeError, match="gradients are enabled on some ranks"),
    ):
        intra_class_contrastive(x, x, labels, group=here.group)
    x = torch.ones(2, 4 + here.rank)
    with pytest.raises(ValueError, match=r"anchor has \[4, 5, 6\] columns on the ranks of group"):
        intra_class_contrastive(x, x, labels, group=here.group)
    x = torch.ones(2, 4, dtype=torch.float64 if here.rank == 1 else torch.float32)
    with pytest.raises(ValueError, match=r"anchor is torch.float32, torch.float64, torch.float32 on the ranks of"):
        intra_class_contrastive(x, x, labels, group=here.group)


def check_transforms_are_refused(here):
    x, labels = torch.randn(3, 4), torch.zeros(3, dtype=torch.int8)

    def loss(z):
        return intra_class_contrastive(z, x, labels, group=here.group)

    for attempt in (
        lambda: torch.func.grad(loss)(x),
        lambda: torch.func.jvp(loss, (x,), (x,)),
        lambda: torch.vmap(loss)(x[None]),
    ):
        with pytest.raises(RuntimeError, match=r"group is given within a transform of torch\.func or in forward mode"):
            attempt()


def check_second_derivatives_are_refused(here):
    x, y, labels = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
    for reduction in ("mean", "none"):
        loss = intra_class_contrastive(x, y, labels, reduction=reduction, group=here.group).sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="icckd's losses can be differentiated once only"):
            torch.autograd.grad(gradient.square().sum(), x)


def check_narrow_labels_meet_wide_ones(here):
    anchor, positive, labels, _ = Rows([4, 3, 5]).of(here.rank)
    labels = labels.clamp(min=0) + 100
    options = {"group": here.group, "num_classes": 200}
    narrow = labels.to([torch.int8, torch.uint8, torch.int64][here.rank])
    actual = intra_class_contrastive(anchor, positive, narrow, **options)
    torch.testing.assert_close(actual, intra_class_contrastive(anchor, positive, labels, **options))


def check_a_label_beyond_the_classes_is_noticed_by_all(here):
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="labels reach 7; they should be below num_classes = 5"):
        intra_class_contrastive(x, x, torch.tensor([0, 1, 7 * (here.rank == 1)]), num_classes=5, group=here.group)


def check_a_group_of_some_ranks(here, pair):
    rows = Rows([4, 3, 5])
    anchor, positive, labels, gate = rows.of(here.rank)
    if here.rank == 1:
        with pytest.raises(ValueError, match="group does not contain this process"):
            intra_class_contrastive(anchor, positive, labels, gate=gate, group=pair)
        return
    loss = intra_class_contrastive(anchor, positive, labels, gate=gate, group=pair, reduction="none")
    anchor, positive, labels, gate = (torch.cat(x) for x in zip(rows.of(0), rows.of(2), strict=True))
    expected = reference.intra_class_contrastive(anchor, positive, labels, gate=gate, reduction="none")
    torch.testing.assert_close(loss, expected.split([4, 5])[here.rank // 2])


# --- distillation: what compares the rows of a batch ------------------------------------------------------------------

RELATIONS = ("rkd_distance", "rkd_angle", "similarity_preserving", "pkt", "dist")


def check_relations_of_all_ranks_are_those_of_one_batch(here, counts, dtype=torch.float64, tolerance=1e-12):
    group = Ranks.known(here.group, counts) if sum(counts) % 2 else here.group
    generator = torch.Generator().manual_seed(sum(counts))
    teachers, students = torch.randn(2, sum(counts), 4, generator=generator, dtype=torch.float64).to(dtype)
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    for name in RELATIONS:
        network = torch.eye(4, dtype=dtype, requires_grad=True)
        own, teacher = students.split(counts)[here.rank], teachers.split(counts)[here.rank].requires_grad_()
        # An empty batch's rows come from no network: its rank has to serve the others all the same.
        features = own @ network if len(own) else own
        loss = getattr(functional, name)(features, teacher, group=group)
        loss.backward()
        assert teacher.grad is None
        single = torch.eye(4, dtype=torch.float64, requires_grad=True)
        expected = getattr(reference, name)(students.double() @ single, teachers.double())
        expected.backward()
        torch.testing.assert_close(mean_over_ranks(here, loss), expected.detach(), **close)
        gradient = torch.zeros_like(network) if network.grad is None else network.grad
        torch.testing.assert_close(mean_over_ranks(here, gradient), single.grad, **close)
        with torch.no_grad():
            torch.testing.assert_close(getattr(functional, name)(own, teacher, group=here.group), loss)


def check_relations_name_what_is_wrong(here):
    x = torch.ones(2, 4)
    for name in RELATIONS:
        function = getattr(functional, name)
        student, teacher = ("student_logits", "teacher_logits") if name == "dist" else ("student", "teacher")
        wide = torch.ones(2, 4 + here.rank)
        with pytest.raises(ValueError, match=rf"{student} has \[4, 5, 6\] columns on the ranks of group"):
            function(wide, wide, group=here.group)
        if name != "dist":
            with pytest.raises(ValueError, match=rf"{teacher} has \[4, 5, 6\] columns on the ranks of group"):
                function(x, wide, group=here.group)
        with pytest.raises(RuntimeError, match=r"group is given within a transform of torch\.func"):
            torch.func.grad(lambda z, f=function: f(z, x, group=here.group))(x)


# --- adaptive hierarchical similarity ---------------------------------------------------------------------------------


def check_hierarchical_similarity_of_all_ranks_is_that_of_one_batch(here, counts, view, known):
    generator = torch.Generator().manual_seed(sum(counts))
    features, augmented = torch.randn(2, sum(counts), 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 3, (sum(counts),), generator=generator)
    network, single = (torch.eye(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    own, own_view, own_labels = (x.split(counts)[here.rank] for x in (features, augmented, labels))
    of_network = own @ network if len(own) else own
    options = {"augmented": own_view @ network if len(own) else own_view} if view else {}
    group = Ranks.known(here.group, counts) if known else here.group
    loss = functional.hierarchical_similarity(of_network, own_labels, group=group, **options)
    loss.backward()
    options = {"augmented": augmented @ single} if view else {}
    expected = reference.hierarchical_similarity(features @ single, labels, **options)
    expected.backward()
    torch.testing.assert_close(mean_over_ranks(here, loss), expected.detach(), rtol=1e-12, atol=1e-12)
    gradient = torch.zeros_like(network) if network.grad is None else network.grad
    torch.testing.assert_close(mean_over_ranks(here, gradient), single.grad, rtol=1e-10, atol=1e-12)


def every_check(here):
    """All of the above; `here` is of three ranks."""
    check_each_rank_uses_its_own_memory(here)
    check_ranks_that_disagree_all_get_an_error(here)
    check_a_group_of_some_ranks(here, dist.new_group([0, 2]))
    check_transforms_are_refused(here)
    check_second_derivatives_are_refused(here)
    check_narrow_labels_meet_wide_ones(here)
    check_a_label_beyond_the_classes_is_noticed_by_all(here)
    for counts in ([4, 4, 4], [7, 1, 12], [5, 0, 9], [0, 0, 0]):
        check_relations_of_all_ranks_are_those_of_one_batch(here, counts)
    check_relations_of_all_ranks_are_those_of_one_batch(here, [7, 2, 12], torch.float32, 1e-5)
    for counts, view, known in (([4, 4, 4], True, False), ([9, 1, 13], False, True), ([5, 0, 9], True, True)):
        check_hierarchical_similarity_of_all_ranks_is_that_of_one_batch(here, counts, view, known)
    check_relations_name_what_is_wrong(here)
