"""Everything a visit to a GPU should do, in one call or two: `python -m bench.gpu --output DIR` (docs/gpu.md).

cases/       what is computed: the cases of `icckd.bench.functions`, and some of its own
ceilings     what the device can do: copy bandwidth, matrix rate
accuracy     every backend against float64
speed        every case: time, fraction of the floor, factor over the peers, peak memory
worker       a process that does one of these for some cases
outcomes     the same for tests: a plugin of pytest
keeper       what a process is started by, so that it does not outlive the visit
stages       the processes: none takes down another
plan         which stages, beside which others, until when
results      files that are whole at every moment
proof        which backend passed and which was the fastest → proof.json; `promote` writes icckd/backends/proven.py
report       summary.md: targets met or missed, tables, figure
record       all of that from the rows that there are by now
"""
