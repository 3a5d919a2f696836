"""Everything a visit to a GPU should do, in one call: `python -m bench.gpu --output DIR` (docs/gpu.md).

cases/       what is computed: inputs, contenders, the least bytes and operations
ceilings     what the device can do: copy bandwidth, matrix rate
accuracy     every backend against float64
speed        every case: time, fraction of the floor, factor over the peers, peak memory
worker       a process that does one of these for some cases
stages       the processes, one after another, so that none takes down another
proof        which backend passed and which was the fastest → proof.json; `promote` writes icckd/backends/proven.py
report       summary.md: targets met or missed, tables, figure
"""
