"""Runs a command that must not outlive whoever wanted it: `python keeper.py PARENT COMMAND …`.

The command gets a process group of its own, and so does all that it starts. When process PARENT is gone, however it
went, the group is killed. Exit status: the command's, or 128 + the signal that killed it.
"""

import os
import signal
import subprocess
import sys

# Seconds between looks.
_INTERVAL = 0.1


def main() -> int:
    parent, *command = sys.argv[1:]
    os.setpgid(0, 0)
    process = subprocess.Popen(command)
    while True:
        try:
            status = process.wait(_INTERVAL)
            return status if status >= 0 else 128 - status
        except subprocess.TimeoutExpired:
            if os.getppid() != int(parent):
                os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
