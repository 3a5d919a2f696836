"""How many kernels a training step launches: the loss, and its gradients for a given upstream one."""

import pytest
import torch

from icckd import backends
from icckd.functional import cross_entropy_with_margin, intra_class_contrastive, kd_kl
from tests.launches import launches
from tests.problems import logits_and_labels, problem, student_and_teacher

pytestmark = pytest.mark.skipif(
    backends.why_not("triton", torch.device("cpu"), torch.float32) is not None, reason="counted in the interpreter"
)


def launched(loss, *inputs):
    """The names of what is launched for the loss of the inputs and their gradients."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    with launches() as seen:
        value = loss(*inputs)
        upstream = torch.empty(())
        torch.autograd.grad(value, inputs, upstream)
    return seen.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gate", [None, "float", "bool"])
def test_intra_class_with_a_number_of_classes(gate, dtype):
    anchor, positive, labels, options = problem(dtype=dtype)
    weight = {None: None, "float": options["gate"].float(), "bool": options["gate"] > 0}[gate]
    names = launched(
        lambda x, y: intra_class_contrastive(x, y, labels, gate=weight, num_classes=5, backend="triton"),
        anchor,
        positive,
    )
    assert len(names) <= (11 if gate == "bool" else 10), names
    assert [name for name in names if name.startswith("aten")] == [
        *(["aten._to_copy"] if gate == "bool" else []),  # the weights
    ]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_cross_entropy(reduction):
    logits, labels = logits_and_labels(9, 40)
    names = launched(lambda x: cross_entropy_with_margin(x, labels, reduction=reduction, backend="triton")[0], logits)
    count = ["add_up"] if reduction == "mean" else []
    assert names == [*count, "cross_entropy_whole", "add_up", "scale"]


@pytest.mark.parametrize("reduction", ["batchmean", "sum"])
def test_kd_kl(reduction):
    student, teacher = student_and_teacher(9, 40)
    names = launched(lambda x: kd_kl(x, teacher, reduction=reduction, backend="triton"), student)
    assert names == ["kd_kl_whole", "add_up", "scale"]
