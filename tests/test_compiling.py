"""The marks for torch.compile, and that they do not load it."""

import subprocess
import sys

import torch

from icckd import compiling


def test_importing_does_not_load_the_compiler():
    code = "import sys, icckd.cli; print([name for name in ('icckd', 'torch._dynamo') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "['icckd']\n"


def test_a_constant_is_marked_as_pytorch_marks_it():
    def ours():
        return 1

    def theirs():
        return 1

    assert vars(compiling.assume_constant_result(ours)) == vars(torch.compiler.assume_constant_result(theirs))
    assert vars(ours)
