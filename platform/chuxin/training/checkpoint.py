"""Checkpoints of a run: written beside each other, real once `complete.json` stands, the newest of them continued.

    STATE/owner.json                              the run that may write here
    STATE/checkpoints/step-00000500-OWNER/engine/ DeepSpeed's files: weights, optimizer, one part a rank if sharded
                                    metrics.jsonl what was logged up to this step
                                    complete.json step, workers, ZeRO stage; written last, by rank 0

Ray's workers outlive a killed driver by up to ten seconds (the interval at which they look for their raylet), so the
next run may meet its predecessor still at work: each writes under its own name, and only the owner removes anything.

Random draws and the learning rate are functions of the step (models/retromae.py, optimizer.py), and the plan's
batch follows from it, so weights, optimizer state and the step are all there is to keep.
Leaves out: resuming sharded state (ZeRO 1 … 3) with another number of workers, which is refused.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import distributed

from chuxin.artifacts import filesystem, is_local, read_json, write_json
from chuxin.errors import InputError
from chuxin.training.step import rank, world_size

ENGINE = "engine"
METRICS = "metrics.jsonl"


class Saved(NamedTuple):
    """A complete checkpoint."""

    uri: str
    step: int
    workers: int
    zero_stage: int


def newest(state: str) -> Saved | None:
    """Returns the newest complete checkpoint of a run, or None."""
    for uri in reversed(_directories(state)):
        note = read_json(f"{uri}/complete.json")
        if note is not None:
            return Saved(uri, note["step"], note["workers"], note["zero_stage"])
    return None


def claim(state: str) -> str:
    """Makes the caller's run the owner of a state; returns the owner's name."""
    owner = uuid.uuid4().hex[:8]
    write_json(f"{state}/owner.json", {"owner": owner})
    return owner


def require_owner(state: str, owner: str) -> None:
    """Stops a worker whose run was killed and has a successor.

    Raises:
        RuntimeError: Another run owns the state, or it is gone.
    """
    note = read_json(f"{state}/owner.json")
    if note is None or note["owner"] != owner:
        raise RuntimeError(f"another run has taken over {state}")


def save(
    engine: Any, state: str, owner: str, step: int, records: Sequence[dict[str, Any]], zero_stage: int, keep: int
) -> None:
    """Writes a checkpoint; all ranks call it. Older ones beyond `keep` go once it is complete.

    Args:
        engine: DeepSpeed's.
        state: The run's directory or URI, seen by all ranks.
        owner: This run's name, from `claim`.
        step: Steps done.
        records: What was logged up to this step; used on rank 0.
        zero_stage: Of the engine.
        keep: Complete checkpoints to keep.
    """
    require_owner(state, owner)
    uri = f"{state}/checkpoints/step-{step:08d}-{owner}"
    if rank() == 0:
        _remove(uri)  # what a lost worker left half-written
    _barrier()
    with _directory(uri, download=False) as local:
        engine.save_checkpoint(local, tag=ENGINE, save_latest=False)
        if rank() == 0:
            write_records(f"{local}/{METRICS}", records)
    _barrier()
    if rank() == 0:
        require_owner(state, owner)
        write_json(f"{uri}/complete.json", {"step": step, "workers": world_size(), "zero_stage": zero_stage})
        complete = [d for d in _directories(state) if read_json(f"{d}/complete.json") is not None]
        for old in set(_directories(state)) - set(complete[-keep:]):
            _remove(old)


def restore(engine: Any, saved: Saved, zero_stage: int) -> list[dict[str, Any]]:
    """Loads a checkpoint into an engine; all ranks call it.

    Returns:
        What was logged up to its step.

    Raises:
        InputError: Its parts are those of another ZeRO stage, or of another number of workers.
    """
    if saved.zero_stage != zero_stage or (zero_stage and saved.workers != world_size()):
        was = f"zero_stage {saved.zero_stage} and {saved.workers} workers"
        remedy = f"Resume with the same, or remove {saved.uri.rpartition('/checkpoints/')[0]} to begin anew"
        raise InputError(saved.uri, f"the checkpoint was written with {was}", remedy)
    with _directory(saved.uri, download=True) as local:
        engine.load_checkpoint(local, tag=ENGINE)
        return read_records(f"{local}/{METRICS}")


def write_records(uri: str, records: Sequence[dict[str, Any]]) -> None:
    """Writes JSON lines."""
    fs, path = filesystem(uri)
    fs.pipe_file(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def read_records(uri: str) -> list[dict[str, Any]]:
    """Reads JSON lines."""
    fs, path = filesystem(uri)
    return [json.loads(line) for line in fs.cat_file(path).splitlines()]


def _directories(state: str) -> list[str]:
    fs, path = filesystem(f"{state}/checkpoints")
    if not fs.exists(path):
        return []
    names = sorted(entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))
    return [f"{state}/checkpoints/{name}" for name in names if name.startswith("step-")]


def _remove(uri: str) -> None:
    fs, path = filesystem(uri)
    note = f"{path}/complete.json"
    if fs.exists(note):
        fs.rm_file(note)  # first: a half-removed checkpoint must not look whole
    if fs.exists(path):
        fs.rm(path, recursive=True)


@contextlib.contextmanager
def _directory(uri: str, download: bool) -> Iterator[str]:
    """A local directory that is, or becomes, or holds a copy of, the one at `uri`."""
    fs, path = filesystem(uri)
    if is_local(uri):
        fs.makedirs(path, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="chuxin-checkpoint-") as local:
        if download:
            fs.get(path + "/", local + "/", recursive=True)
            yield local
        else:
            yield local
            fs.put(local + "/", path + "/", recursive=True)


def _barrier() -> None:
    if world_size() > 1:
        distributed.barrier()
