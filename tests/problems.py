"""What tests of the losses share: random problems, losses with their gradients, and how exact they must be.

The criterion: the largest error against float64 is at most twice that of PyTorch in the same precision, or rounding.
Problems are drawn on the CPU, so that they are the same on every device.
"""

import torch

from icckd import reference
from icckd.functional import intra_class_contrastive

SMALL = [torch.float32, torch.bfloat16, torch.float16]


# --- the intra-class loss ---------------------------------------------------------------------------------------------


def problem(count=40, dim=9, classes=4, slots=0, dtype=torch.float32, seed=0, device="cpu"):
    """Anchors, their views, labels from −1 up, a float gate with zeros, and a memory with empty slots."""
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    positive = anchor + 0.7 * torch.randn(count, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, classes, (count,), generator=generator)
    gate = torch.rand(count, generator=generator) * (torch.rand(count, generator=generator) < 0.7)
    options = {"gate": gate.to(device)}
    if slots:
        memory = torch.randn(slots, dim, generator=generator, dtype=torch.float64)
        options["memory"] = memory.to(device, dtype)
        options["memory_labels"] = torch.randint(-1, classes + 1, (slots,), generator=generator).to(device)
    return anchor.to(device, dtype), positive.to(device, dtype), labels.to(device), options


def with_gradients(function, anchor, positive, labels, temperature=0.1, upstream=None, **options):
    """The loss, and its gradients with respect to anchor, positive and temperature."""
    anchor, positive = anchor.detach().requires_grad_(), positive.detach().requires_grad_()
    dtype = torch.promote_types(anchor.dtype, torch.float32)
    temperature = torch.tensor(temperature, dtype=dtype, device=anchor.device, requires_grad=True)
    loss = function(anchor, positive, labels, temperature=temperature, **options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream)
    return loss.detach(), anchor.grad, positive.grad, temperature.grad


def exact(anchor, positive, labels, upstream=None, **options):
    """What the definition gives in float64."""
    options = {name: x.double() if name in ("memory", "gate") else x for name, x in options.items()}
    upstream = None if upstream is None else upstream.double()
    function = reference.intra_class_contrastive
    return with_gradients(function, anchor.double(), positive.double(), labels, upstream=upstream, **options)


def assert_as_exact_as_pytorch(backend, anchor, positive, labels, temperature=0.1, num_classes=None, **options):
    """The largest error is at most twice that of the definition in the inputs' own precision, or rounding.

    Rounding of the result, and of the logits: the similarities' error over the temperature, which exp passes on.
    Similarities are up to 1, or of rows taken as they are what those give.
    """
    options["temperature"] = temperature
    truth = exact(anchor, positive, labels, **options)
    plain = with_gradients(reference.intra_class_contrastive, anchor, positive, labels, **options)
    computed = with_gradients(
        intra_class_contrastive, anchor, positive, labels, num_classes=num_classes, backend=backend, **options
    )
    largest = 1.0 if options.get("normalize", True) else _largest_similarity(anchor, positive)
    temperature /= max(1.0, largest)
    # The gradient of the temperature is a sum of terms as large as 1 / temperature², which may cancel.
    absolute = (1e-7, 1e-7, 1e-7, 1e-7 * max(1, temperature**-2))
    assert_as_exact(computed, plain, truth, temperature, absolute)


def _largest_similarity(anchor, positive):
    """No product of two rows is larger."""
    anchor_norm, positive_norm = (x.double().norm(dim=1).amax().item() if len(x) else 0.0 for x in (anchor, positive))
    return anchor_norm * max(anchor_norm, positive_norm)


def assert_as_exact(computed, plain, truth, temperature, absolute=(1e-7, 1e-7, 1e-7, 1e-7)):
    """The criterion for loss and gradients: computed by a backend, by the definition, and by it in float64.

    absolute: Rounding that does not shrink with the results, where large numbers cancel.
    """
    names = ("loss", "anchor", "positive", "temperature")
    for name, x, y, z, least in zip(names, computed, plain, truth, absolute, strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        error, budget = ((v.double() - z).abs().max() if v.numel() else 0 for v in (x, y))
        scale = z.abs().max() if z.numel() else 0
        rounding = 4 * torch.finfo(x.dtype).eps + 1.2e-7 * max(1, 1 / temperature)
        assert error <= 2 * budget + rounding * scale + least, name


# --- products with a memory bank --------------------------------------------------------------------------------------


def bank_problem(queries, count, dim, rows, dtype=torch.float32, bank_dtype=None, seed=0, device="cpu"):
    """Query, bank, indices of which some are repeated, and the products' upstream gradient."""
    generator = torch.Generator().manual_seed(seed + 1000 * count + dim)
    query = torch.randn(queries, dim, generator=generator).to(device, dtype)
    bank = torch.randn(rows, dim, generator=generator).to(device, bank_dtype or dtype)
    # No number can be drawn below 0, even if none is wanted.
    index = torch.randint(max(rows, 1), (queries, count), generator=generator)
    if count > 2:
        index[:, -1] = index[:, 0]
    return query, bank, index.to(device), torch.randn(queries, count, generator=generator).to(device)


# --- losses of two matrices, or of a matrix and labels ----------------------------------------------------------------


def logits_and_labels(rows, classes, dtype=torch.float32, seed=0, scale=3.0, ignored=True, device="cpu"):
    """Logits (rows, classes) and labels; the second of three or more rows is ignored."""
    generator = torch.Generator().manual_seed(seed + 1000 * rows + classes)
    logits = (torch.randn(rows, classes, generator=generator) * scale).to(device, dtype)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    if ignored and rows > 2:
        labels[1] = -100
    return logits, labels.to(device)


def student_and_teacher(rows, student_width, teacher_width=None, dtype=torch.float32, scale=3.0, device="cpu"):
    """A student's matrix (rows, student_width) and a teacher's, of the same width if None."""
    width = student_width if teacher_width is None else teacher_width
    generator = torch.Generator().manual_seed(1000 * rows + student_width)
    student = torch.randn(rows, student_width, generator=generator) * scale
    teacher = torch.randn(rows, width, generator=generator) * scale
    return student.to(device, dtype), teacher.to(device, dtype)


def loss_and_gradient(function, student, teacher, upstream=None, **options):
    """The loss and the student's gradient."""
    student = student.detach().requires_grad_()
    loss = function(student, teacher, **options)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream.to(loss))
    return loss.detach(), student.grad


def loss_margin_and_gradient(function, logits, labels, upstream=None, **options):
    """Loss, margin (None from PyTorch's own cross_entropy) and gradient, as `function` computes them."""
    logits = logits.detach().requires_grad_()
    result = function(logits, labels, **options)
    loss, margin = result if isinstance(result, tuple) else (result, None)
    loss.backward(torch.ones_like(loss) if upstream is None else upstream.to(loss))
    return loss.detach(), margin, logits.grad


def assert_as_accurate(actual, same_precision, exact, slack):
    """The error against float64 is at most twice that of PyTorch in the same precision, plus a few roundings."""
    error = (actual.double() - exact).abs().max()
    budget = 2 * (same_precision.double() - exact).abs().max() + slack
    assert error <= budget, f"error {error:.3e}, budget {budget:.3e}"
