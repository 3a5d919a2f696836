"""`python -m icckd` is the command `icckd`."""

from icckd.cli import main

if __name__ == "__main__":  # Workers of a comparison import this module too.
    main()
