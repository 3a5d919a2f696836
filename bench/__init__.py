"""Benchmarks, one command each: `python -m bench.NAME --help`."""

import io
import sys

# Tables hold × and µ, which not every terminal has.
for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):
        _stream.reconfigure(errors="replace")
