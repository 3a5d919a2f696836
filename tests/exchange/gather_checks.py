"""`group`: ranks with their own rows against all rows in one process."""

import pytest
import torch
import torch.distributed as dist

from icckd import functional, reference
from icckd.exchange import Ranks
from icckd.functional import intra_class_contrastive

WORLD = 3
# Of three ranks, once there are processes.
GROUP = None


def rows(counts, dtype=torch.float64, seed=0):
    """Anchors, positives, labels and gates of every rank."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    anchor, positive = (torch.randn(total, 4, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    labels = torch.randint(-1, 3, (total,), generator=generator)
    gate = torch.rand(total, generator=generator, dtype=torch.float64).float() * (torch.arange(total) % 3 > 0)
    return [x.split(counts) for x in (anchor, positive, labels, gate)]


def concatenated(parts, **options):
    """The loss of all ranks' rows in one process, and its gradients, split by rank."""
    counts = [len(x) for x in parts[0]]
    anchor, positive, labels, gate = (torch.cat(x) for x in parts)
    anchor, positive = anchor.double().requires_grad_(), positive.double().requires_grad_()
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss = reference.intra_class_contrastive(anchor, positive, labels, gate=gate, temperature=temperature, **options)
    loss.sum().backward()
    return loss.detach(), anchor.grad.split(counts), positive.grad.split(counts), temperature.grad


def mean_over_ranks(x):
    x = x.detach().clone()
    dist.all_reduce(x, group=GROUP)
    return x / WORLD


def check_ranks_are_one_batch(rank, counts, dtype=torch.float64, tolerance=1e-12, silent_rank=None):
    parts = rows(counts, dtype)
    if silent_rank is not None:
        parts[3] = [gate * (r != silent_rank) for r, gate in enumerate(parts[3])]
    anchor, positive, labels, gate = (x[rank].clone() for x in parts)
    # An empty batch, say, comes from no network: its rows need no gradient, but those of other ranks do.
    anchor.requires_grad_(len(anchor) > 0)
    positive.requires_grad_(len(positive) > 0)
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    for reduction in ("mean", "sum", "none"):
        anchor.grad = positive.grad = None
        temperature = torch.tensor(0.3, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
        loss = intra_class_contrastive(
            anchor,
            positive,
            labels,
            gate=gate,
            temperature=temperature,
            reduction=reduction,
            group=GROUP,
            backend="reference",
        )
        loss.sum().backward()
        expected, d_anchor, d_positive, d_temperature = concatenated(parts, reduction=reduction)
        if reduction == "none":
            torch.testing.assert_close(loss, expected.split(counts)[rank], **close)
        elif reduction == "sum":
            torch.testing.assert_close(WORLD * mean_over_ranks(loss), expected, **close)
        else:
            torch.testing.assert_close(mean_over_ranks(loss), expected, **close)
        # Averaging over ranks, as DistributedDataParallel does, divides by their number.
        ranks = WORLD if reduction == "mean" else 1
        torch.testing.assert_close(temperature.grad.new_tensor(WORLD / ranks) * mean_over_ranks(temperature.grad),
                                   d_temperature, **close)  # fmt: skip
        if len(anchor):
            torch.testing.assert_close(anchor.grad / ranks, d_anchor[rank], **close)
            torch.testing.assert_close(positive.grad / ranks, d_positive[rank], **close)


def check_a_shared_network_gets_the_gradient_of_one_batch(rank):
    counts = [5, 0, 9]
    parts = rows(counts)
    weight = torch.eye(4, dtype=torch.float64, requires_grad=True)
    anchor, positive, labels, gate = (x[rank] for x in parts)
    loss = intra_class_contrastive(anchor @ weight, positive @ weight, labels, gate=gate, group=GROUP)
    loss.backward()
    anchor, positive, labels, gate = (torch.cat(x) for x in parts)
    single = torch.eye(4, dtype=torch.float64, requires_grad=True)
    reference.intra_class_contrastive(anchor @ single, positive @ single, labels, gate=gate).backward()
    torch.testing.assert_close(mean_over_ranks(weight.grad), single.grad, rtol=1e-12, atol=1e-12)


def check_each_rank_uses_its_own_memory(rank):
    counts = [4, 6, 5]
    parts = rows(counts)
    memory = torch.full((2, 4), rank + 1.0, dtype=torch.float64)
    memory[1, rank] = -1
    memory_labels = torch.tensor([0, 2])
    options = {"memory": memory, "memory_labels": memory_labels, "reduction": "none"}
    anchor, positive, labels, gate = (x[rank] for x in parts)
    loss = intra_class_contrastive(anchor, positive, labels, gate=gate, group=GROUP, **options)
    anchor, positive, labels, gate = (torch.cat(x) for x in parts)
    expected = reference.intra_class_contrastive(anchor, positive, labels, gate=gate, **options)
    torch.testing.assert_close(loss, expected.split(counts)[rank])


def check_evaluation_without_gradient(rank):
    parts = rows([3, 4, 5])
    with torch.no_grad():
        anchor, positive, labels, gate = (x[rank] for x in parts)
        loss = intra_class_contrastive(anchor, positive, labels, gate=gate, group=GROUP)
    torch.testing.assert_close(mean_over_ranks(loss), concatenated_at_default_temperature(parts))


def concatenated_at_default_temperature(parts):
    anchor, positive, labels, gate = (torch.cat(x) for x in parts)
    return reference.intra_class_contrastive(anchor, positive, labels, gate=gate)


def check_ranks_that_disagree_all_get_an_error(rank):
    x, labels = torch.ones(2, 4), torch.zeros(2, dtype=torch.long)
    with torch.set_grad_enabled(rank == 0), pytest.raises(RuntimeError, match="gradients are enabled on some ranks"):
        intra_class_contrastive(x, x, labels, group=GROUP)
    x = torch.ones(2, 4 + rank)
    with pytest.raises(ValueError, match=r"anchor has \[4, 5, 6\] columns on the ranks of group"):
        intra_class_contrastive(x, x, labels, group=GROUP)
    x = torch.ones(2, 4, dtype=torch.float64 if rank == 1 else torch.float32)
    with pytest.raises(ValueError, match=r"anchor is torch.float32, torch.float64, torch.float32 on the ranks of"):
        intra_class_contrastive(x, x, labels, group=GROUP)


def check_transforms_are_refused(rank):
    x, labels = torch.randn(3, 4), torch.zeros(3, dtype=torch.int8)

    def loss(z):
        return intra_class_contrastive(z, x, labels, group=GROUP)

    for attempt in (
        lambda: torch.func.grad(loss)(x),
        lambda: torch.func.jvp(loss, (x,), (x,)),
        lambda: torch.vmap(loss)(x[None]),
    ):
        with pytest.raises(RuntimeError, match=r"group is given within a transform of torch\.func or in forward mode"):
            attempt()


def check_second_derivatives_are_refused(rank):
    x, y, labels = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
    for reduction in ("mean", "none"):
        loss = intra_class_contrastive(x, y, labels, reduction=reduction, group=GROUP).sum()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match="icckd's losses can be differentiated once only"):
            torch.autograd.grad(gradient.square().sum(), x)


def check_narrow_labels_meet_wide_ones(rank):
    counts = [4, 3, 5]
    anchor, positive, labels, _ = (x[rank] for x in rows(counts))
    labels = labels.abs() + 100
    options = {"group": GROUP, "num_classes": 200}
    narrow = labels.to([torch.int8, torch.uint8, torch.int64][rank])
    actual = intra_class_contrastive(anchor, positive, narrow, **options)
    torch.testing.assert_close(actual, intra_class_contrastive(anchor, positive, labels, **options))


def check_a_label_beyond_the_classes_is_noticed_by_all(rank):
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="labels reach 7; they should be below num_classes = 5"):
        intra_class_contrastive(x, x, torch.tensor([0, 1, 7 * (rank == 1)]), num_classes=5, group=GROUP)


def check_a_group_of_some_ranks(rank, pair):
    counts = [4, 3, 5]
    parts = rows(counts)
    anchor, positive, labels, gate = (x[rank] for x in parts)
    if rank == 1:
        with pytest.raises(ValueError, match="group does not contain this process"):
            intra_class_contrastive(anchor, positive, labels, gate=gate, group=pair)
        return
    loss = intra_class_contrastive(anchor, positive, labels, gate=gate, group=pair, reduction="none")
    anchor, positive, labels, gate = (torch.cat([x[0], x[2]]) for x in parts)
    expected = reference.intra_class_contrastive(anchor, positive, labels, gate=gate, reduction="none")
    torch.testing.assert_close(loss, expected.split([4, 5])[rank // 2])


# --- distillation: what compares the rows of a batch ------------------------------------------------------------------

RELATIONS = ("rkd_distance", "rkd_angle", "similarity_preserving", "pkt", "dist")


def check_relations_of_all_ranks_are_those_of_one_batch(rank, counts, dtype=torch.float64, tolerance=1e-12):
    group = Ranks.known(GROUP, counts) if sum(counts) % 2 else GROUP
    generator = torch.Generator().manual_seed(sum(counts))
    teachers, students = torch.randn(2, sum(counts), 4, generator=generator, dtype=torch.float64).to(dtype)
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    for name in RELATIONS:
        network = torch.eye(4, dtype=dtype, requires_grad=True)
        own, teacher = students.split(counts)[rank], teachers.split(counts)[rank].requires_grad_()
        # An empty batch's rows come from no network: its rank has to serve the others all the same.
        features = own @ network if len(own) else own
        loss = getattr(functional, name)(features, teacher, group=group)
        loss.backward()
        assert teacher.grad is None
        single = torch.eye(4, dtype=torch.float64, requires_grad=True)
        expected = getattr(reference, name)(students.double() @ single, teachers.double())
        expected.backward()
        torch.testing.assert_close(mean_over_ranks(loss), expected.detach(), **close)
        gradient = torch.zeros_like(network) if network.grad is None else network.grad
        torch.testing.assert_close(mean_over_ranks(gradient), single.grad, **close)
        with torch.no_grad():
            torch.testing.assert_close(getattr(functional, name)(own, teacher, group=GROUP), loss)


def check_relations_name_what_is_wrong(rank):
    x = torch.ones(2, 4)
    for name in RELATIONS:
        function = getattr(functional, name)
        student, teacher = ("student_logits", "teacher_logits") if name == "dist" else ("student", "teacher")
        wide = torch.ones(2, 4 + rank)
        with pytest.raises(ValueError, match=rf"{student} has \[4, 5, 6\] columns on the ranks of group"):
            function(wide, wide, group=GROUP)
        if name != "dist":
            with pytest.raises(ValueError, match=rf"{teacher} has \[4, 5, 6\] columns on the ranks of group"):
                function(x, wide, group=GROUP)
        with pytest.raises(RuntimeError, match=r"group is given within a transform of torch\.func"):
            torch.func.grad(lambda z, f=function: f(z, x, group=GROUP))(x)


def every_check(here, pair):
    """All of the above; `here` is of three ranks, `pair` the group of the first and the last."""
    global GROUP
    rank, GROUP = here.rank, here.group
    check_ranks_are_one_batch(rank, [4, 4, 4])
    check_ranks_are_one_batch(rank, [7, 1, 12])
    check_ranks_are_one_batch(rank, [5, 0, 9])
    check_ranks_are_one_batch(rank, [0, 0, 0])
    check_ranks_are_one_batch(rank, [6, 5, 8], silent_rank=2)
    check_ranks_are_one_batch(rank, [7, 2, 12], torch.float32, 1e-5)
    check_ranks_are_one_batch(rank, [7, 2, 12], torch.bfloat16, 2e-2)
    check_ranks_are_one_batch(rank, [7, 2, 12], torch.float16, 5e-3)
    check_a_shared_network_gets_the_gradient_of_one_batch(rank)
    check_each_rank_uses_its_own_memory(rank)
    check_evaluation_without_gradient(rank)
    check_ranks_that_disagree_all_get_an_error(rank)
    check_a_group_of_some_ranks(rank, pair)
    check_transforms_are_refused(rank)
    check_second_derivatives_are_refused(rank)
    check_narrow_labels_meet_wide_ones(rank)
    check_a_label_beyond_the_classes_is_noticed_by_all(rank)
    for counts in ([4, 4, 4], [7, 1, 12], [5, 0, 9], [0, 0, 0]):
        check_relations_of_all_ranks_are_those_of_one_batch(rank, counts)
    check_relations_of_all_ranks_are_those_of_one_batch(rank, [7, 2, 12], torch.float32, 1e-5)
    check_relations_name_what_is_wrong(rank)
