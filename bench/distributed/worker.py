"""What each process of `bench.distributed` does: everything with all others, in the same order."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from bench.distributed.cases import Shape
from bench.distributed.exchange import measure_exchange
from bench.distributed.together import Place
from bench.distributed.training import measure_hidden
from icckd.bench.measure import Row
from icckd.bench.output import write_rows_json


def work(rank: int, world: int, threads: int, device: str, shapes: list[Shape], seconds: float, folder: Path) -> None:
    """Measure as rank `rank` of `world`, with so many threads; rank 0 writes the rows to `folder`/rows.json."""
    torch.set_num_threads(threads)
    own_device = torch.device(device) if device == "cpu" else torch.device(device, rank)
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)
    backend, gpu = ("gloo", None) if own_device.type == "cpu" else ("nccl", own_device)
    store = f"file://{folder}/store"
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=world, device_id=gpu)
    assert dist.group.WORLD is not None
    place = Place(rank, world, own_device, dist.group.WORLD)
    try:
        rows: list[Row] = []
        for shape in shapes:
            rows += measure_exchange(shape, place, seconds)
        # Processes that share cores have nothing to hide an exchange behind.
        if world > 1 and (own_device.type == "cuda" or world <= (os.cpu_count() or 1)):
            rows += measure_hidden(shapes[0], place, seconds)
        if rank == 0:
            write_rows_json(folder / "rows.json", rows)
    finally:
        dist.destroy_process_group()
