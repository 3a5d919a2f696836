"""The command `icckd`.

`commands` runs what `arguments` understood; `doctor` is a command of its own; `streams` copes with what stands behind
standard output.
"""

from icckd.cli.commands import main

__all__ = ["main"]
