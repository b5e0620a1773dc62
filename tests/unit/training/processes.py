"""Ranks as processes of their own, and plans written slice by slice: what the scripts of this folder share.

A script is a file with `run_as(rank, world, directory, …)`; `python FILE RANK WORLD DIRECTORY …` runs it as one rank
and leaves the result in DIRECTORY/RANK.pt.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import distributed

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def group(rank: int, world: int, directory: Path) -> Iterator[None]:
    """A process group over gloo whose ranks meet in a directory's file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = distributed.FileStore(str(directory / "store"), world)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=100))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def main(run_as: Callable[..., Any]) -> None:
    """A script's end: runs it as the rank that the command line names."""
    torch.set_num_threads(1)
    rank, world, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.save(run_as(rank, world, directory, *map(int, sys.argv[4:])), directory / f"{rank}.pt")


def start(file: str, rank: int, world: int, directory: Path, *arguments: int) -> subprocess.Popen:
    """Starts a script as one rank."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, file, *map(str, (rank, world, directory, *arguments))]
    return subprocess.Popen(command, env=environment)


def both(script: Any, directory: Path, *arguments: int) -> tuple[Any, Any]:
    """Runs a script as two ranks, the first of them in this process; returns their results."""
    second = start(script.__file__, 1, 2, directory, *arguments)
    try:
        first = script.run_as(0, 2, directory, *arguments)
        assert second.wait(timeout=120) == 0
    finally:
        second.kill()
    return first, torch.load(directory / "1.pt", weights_only=False)


def write_slices(file: Path, schema: pa.Schema, rows: Sequence[dict], slices: Sequence[Sequence[int]]) -> None:
    """Writes a plan's rows with one row group a slice of a batch, as packing does."""
    with pq.ParquetWriter(file, schema) as writer:
        for batch, parts in enumerate(slices):
            for part in sorted(set(parts)):
                own = [row for row in rows if (row["batch"], row["slice"]) == (batch, part)]
                writer.write_table(pa.Table.from_pylist(own, schema))
