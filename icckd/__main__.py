"""`python -m icckd` is the command `icckd`."""

from icckd.cli import main

main()
