"""Every loss against float64, at sizes that meet the tiles of a GPU: at most twice the error of PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from icckd import ClassMemory, reference
from icckd.functional import (
    bank_products,
    cross_entropy_with_margin,
    hierarchical_similarity,
    intra_class_contrastive,
    kd_kl,
    rkd_angle,
    rkd_distance,
    supervised_contrastive,
)
from icckd.ops.class_memory import class_memory_push
from tests.problems import (
    SMALL,
    assert_as_accurate,
    assert_as_exact_as_pytorch,
    bank_problem,
    logits_and_labels,
    loss_and_gradient,
    loss_margin_and_gradient,
    problem,
    student_and_teacher,
    with_gradients,
)

# Rows, their length, classes, slots of a memory. Classes fill tiles or not, alone or several, or take several tiles.
INTRA_CLASS = [
    (1, 1, 1, 0),
    (257, 31, 1, 100),
    (1000, 64, 1000, 0),
    (1009, 130, 61, 0),
    (1500, 512, 23, 0),
    (700, 1000, 9, 0),
    (2048, 128, 3, 0),
    (300, 256, 40, 4000),
    (64, 96, 2, 20_000),
]


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("count", "dim", "classes", "slots"), INTRA_CLASS)
@pytest.mark.parametrize("counted", [False, True])
def test_intra_class(target, dtype, count, dim, classes, slots, counted):
    target.require("intra_class_sum")
    if target.interpreted:
        if dtype != torch.float32 or counted:
            pytest.skip("tests/kernels interprets this")
        count, dim, slots = min(count, 40), min(dim, 20), min(slots, 30)
    anchor, positive, labels, options = problem(count, dim, classes, slots, dtype, device=target.device)
    upstream = torch.rand(count, generator=torch.Generator().manual_seed(1)).to(target.device)
    for reduction in ("mean", "none"):
        options |= {"reduction": reduction, "upstream": upstream if reduction == "none" else None}
        options["num_classes"] = classes + 1 if counted else None
        assert_as_exact_as_pytorch(target.backend, anchor, positive, labels, **options)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_intra_class_at_temperatures(target, normalize, temperature):
    target.require("intra_class_sum")
    count = target.choose(900, 40)
    anchor, positive, labels, options = problem(count, 24, 7, target.choose(90, 9), device=target.device)
    scale = 1.0 if normalize else 0.2
    options |= {"normalize": normalize, "temperature": temperature}
    assert_as_exact_as_pytorch(target.backend, scale * anchor, scale * positive, labels, **options)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("count", "dim", "classes"), [(257, 31, 1), (1009, 130, 61), (3000, 64, 7), (700, 512, 400)])
@pytest.mark.parametrize("counted", [False, True])
def test_supervised_contrastive(target, dtype, count, dim, classes, counted):
    if target.interpreted:
        pytest.skip("tests/functional interprets this")
    features, _, labels, _ = problem(count, dim, classes, 0, dtype, device=target.device)
    options = {"num_classes": classes} if counted else {}
    loss, gradient = loss_and_gradient(supervised_contrastive, features, labels, backend=target.backend, **options)
    exact = loss_and_gradient(reference.supervised_contrastive, features.double(), labels)
    single = loss_and_gradient(reference.supervised_contrastive, features, labels)
    assert_as_accurate(loss, single[0], exact[0], slack=1e-5)
    # The gradient is the sum of two parts, each rounded.
    rounding = 2e-5 + 4 * torch.finfo(dtype).eps
    assert_as_accurate(gradient, single[1], exact[1], slack=rounding * float(exact[1].abs().max()))


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "classes"), [(7, 2), (64, 100), (129, 1000), (33, 50_257), (5, 262_144)])
def test_cross_entropy(target, dtype, rows, classes):
    target.require("cross_entropy_margin_sum")
    rows, classes = target.choose((rows, classes), (min(rows, 5), min(classes, 100)))
    logits, labels = logits_and_labels(rows, classes, dtype, device=target.device)
    options = {"label_smoothing": 0.1}
    loss, margin, gradient = loss_margin_and_gradient(
        cross_entropy_with_margin, logits, labels, backend=target.backend, **options
    )
    exact = loss_margin_and_gradient(F.cross_entropy, logits.double(), labels, **options)
    single = loss_margin_and_gradient(lambda x, y, **o: F.cross_entropy(x.float(), y, **o), logits, labels, **options)
    assert_as_accurate(loss, single[0], exact[0], slack=1e-6 * float(exact[0].abs()) + 1e-7)
    assert_as_accurate(gradient, single[2], exact[2], slack=1e-6 * float(exact[2].abs().max()) + 1e-7)
    expected = reference.classification_margin(logits.double(), labels)
    torch.testing.assert_close(margin, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(("rows", "classes"), [(7, 2), (64, 100), (129, 1000), (33, 50_257)])
def test_kd_kl(target, dtype, standardize, rows, classes):
    target.require("kd_kl_sum")
    rows, classes = target.choose((rows, classes), (min(rows, 5), min(classes, 100)))
    pair = student_and_teacher(rows, classes, dtype=dtype, device=target.device)
    options = {"standardize": standardize, "temperature": 2.5}
    loss, gradient = loss_and_gradient(kd_kl, *pair, backend=target.backend, **options)
    exact = loss_and_gradient(reference.kd_kl, *(x.double() for x in pair), **options)
    single = loss_and_gradient(reference.kd_kl, *pair, **options)
    assert_as_accurate(loss, single[0], exact[0], slack=2e-6 * float(exact[0].abs()) + 1e-6)
    assert_as_accurate(gradient, single[1], exact[1], slack=2e-6 * float(exact[1].abs().max()) + 1e-6 / rows)


@pytest.mark.parametrize("function", [rkd_distance, rkd_angle], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "student_width", "teacher_width"), [(17, 31, 13), (130, 64, 512), (97, 257, 3)])
def test_relational(target, function, dtype, rows, student_width, teacher_width):
    target.require(function.__name__)
    rows = target.choose(rows, min(rows, 12))
    pair = student_and_teacher(rows, student_width, teacher_width, dtype, scale=1.0, device=target.device)
    definition = getattr(reference, function.__name__)
    loss, gradient = loss_and_gradient(function, *pair, backend=target.backend)
    exact = loss_and_gradient(definition, *(x.double() for x in pair))
    single = loss_and_gradient(definition, *pair)
    assert_as_accurate(loss, single[0], exact[0], slack=2e-6 * float(exact[0]) + 1e-9)
    assert_as_accurate(gradient, single[1], exact[1], slack=1e-5 * float(exact[1].abs().max()) + 1e-9)


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 65, 17, 5), (64, 4097, 128, 10_000), (2, 20_000, 301, 500)])
def test_bank_products(target, dtype, sizes):
    target.require("bank_products")
    if target.interpreted:
        sizes = [min(size, 20) for size in sizes]
    query, *others, upstream = bank_problem(*sizes, dtype=dtype, device=target.device)
    results = []
    for function, of in ((bank_products, None), (reference.bank_products, None), (reference.bank_products, "double")):
        x, bank, index = (t.double() if of and t.is_floating_point() else t for t in (query, *others))
        x = x.detach().requires_grad_()
        products = function(x, bank, index, **({"backend": target.backend} if function is bank_products else {}))
        (gradient,) = torch.autograd.grad(products, x, upstream.to(products.dtype))
        results.append((products.detach(), gradient))
    for computed, single, exact in zip(*results, strict=True):
        assert_as_accurate(computed, single, exact, slack=1e-6 * float(exact.abs().max()))


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "dim", "classes"), [(1, 1, 1), (257, 31, 3), (1009, 130, 61), (500, 300, 500)])
def test_hierarchical_similarity(target, dtype, rows, dim, classes):
    target.require("hierarchical_sum")
    if target.interpreted:
        rows, dim = min(rows, 40), min(dim, 20)
    features, augmented, labels, _ = problem(rows, dim, classes, dtype=dtype, device=target.device)
    results = []
    for function, of, options in (
        (hierarchical_similarity, dtype, {"backend": target.backend}),
        (reference.hierarchical_similarity, dtype, {}),
        (reference.hierarchical_similarity, torch.float64, {}),
    ):
        given = [x.detach().to(of).requires_grad_() for x in (features, augmented)]
        loss = function(given[0], labels, augmented=given[1], **options)
        results.append((loss.detach(), *torch.autograd.grad(loss, given)))
    for computed, single, exact in zip(*results, strict=True):
        assert_as_accurate(computed, single, exact, slack=2e-6 * float(exact.abs().max()) + 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_intra_class_reads_nothing_but_the_rows(target, dtype):
    """Padding on either side of rows and columns that is NaN gives the bits that finite padding gives."""
    target.require("intra_class_sum")
    count, dim = target.choose((500, 90), (40, 9))
    anchor, positive, labels, options = problem(count, dim, 5, target.choose(200, 20), dtype, device=target.device)
    options["backend"] = target.backend

    def within(padding, x):
        wide = torch.full((len(x) + 64, dim + 22), padding, dtype=dtype, device=target.device)
        wide[32:-32, 8 : 8 + dim] = x
        return wide[32:-32, 8 : 8 + dim]

    def results(padding):
        rows = (within(padding, x) for x in (anchor, positive))
        memory = within(padding, options["memory"])
        return with_gradients(intra_class_contrastive, *rows, labels, **{**options, "memory": memory})

    # Rows without padding are aligned otherwise, and may be summed in another order: they are near.
    plain = with_gradients(intra_class_contrastive, anchor, positive, labels, **options)
    for x, y, z in zip(results(torch.nan), results(1.0), plain, strict=True):
        assert torch.equal(x, y)
        torch.testing.assert_close(x, z, rtol=2e-2, atol=1e-3 * z.abs().max().item())


@pytest.mark.parametrize("dtype", SMALL, ids=str)
@pytest.mark.parametrize(("rows", "classes", "capacity"), [(1, 1, 1), (1000, 61, 5), (4096, 1000, 64)])
def test_class_memory(target, dtype, rows, classes, capacity):
    """Two pushes leave what PyTorch leaves on the CPU, bit by bit."""
    target.require("class_memory_push")
    rows, classes = target.choose((rows, classes), (min(rows, 20), min(classes, 6)))
    generator = torch.Generator().manual_seed(0)
    memory = ClassMemory(classes, capacity, 33, dtype=dtype)
    slots, pushed = (x.to(target.device, copy=True) for x in (memory.slots, memory.pushed))
    for _ in range(2):
        features = torch.randn(rows, 33, generator=generator).to(dtype)
        # A label beyond the last class is skipped on a GPU, and refused on a CPU.
        beyond = target.device != "cpu"
        labels = torch.randint(-1, classes + beyond, (rows,), generator=generator)
        # Skipped.
        features[rows // 2, 7] = torch.inf
        class_memory_push(memory.slots, memory.pushed, features, labels.where(labels < classes, -1), "reference")
        class_memory_push(slots, pushed, features.to(target.device), labels.to(target.device), target.backend)
    assert torch.equal(slots.cpu(), memory.slots)
    assert torch.equal(pushed.cpu(), memory.pushed)
