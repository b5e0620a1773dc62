"""Checkpoints of a run: written beside each other, real once `complete.json` stands, the newest of them continued.

    STATE/owner.json                                   the run that may write here
    STATE/checkpoints/step-00000500-OWNER/part-000.safetensors  weights and Adam's state by name, fp32, one file a rank
                                    metrics.jsonl      what was logged up to this step
                                    complete.json      step, the losses before it; written last, by rank 0
    STATE/best/step-00000400-OWNER/model.safetensors   the weights with the best dev score so far
                             complete.json             step and score

Every parameter is written whole, so a run continues with any number of workers and at any ZeRO stage. Rank r of W
writes every W-th parameter; all ranks take part in putting it together. On a CPU the continued run is the
undisturbed one to the bit as long as workers and stage stay the same (all four stages, one and two workers).

Ray's workers outlive a killed driver by up to ten seconds (the interval at which they look for their raylet), so the
next run may meet its predecessor still at work: each writes under its own name, and only the owner removes anything.

Random draws and the learning rate are functions of the step (models/dropout.py, models/retromae.py, optimizer.py),
and the plan's batch follows from it, so weights, their average, optimizer state, the step and the last losses are all
there is to keep. Leaves out: parameters that are not trained, which the starting model has.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed, nn

from chuxin.files import filesystem, is_local, read_json, write_json
from chuxin.training.ema import Average
from chuxin.training.shards import local, optimizer_states, trained, whole
from chuxin.training.step import rank, world_size

METRICS = "metrics.jsonl"
WEIGHT, AVERAGE = "weight", "average"
"""Kinds of tensors in a checkpoint, besides Adam's."""


class Saved(NamedTuple):
    """A complete checkpoint."""

    uri: str
    step: int
    recent: list[float]
    """The losses of the last steps up to this one; see guard.py."""


class Best(NamedTuple):
    """The weights that scored best while training."""

    uri: str
    step: int
    score: float


def newest(state: str) -> Saved | None:
    """Returns the newest complete checkpoint of a run, or None."""
    for uri in reversed(_directories(f"{state}/checkpoints")):
        note = read_json(f"{uri}/complete.json")
        if note is not None:
            return Saved(uri, note["step"], note["recent"])
    return None


def best(state: str, last_step: int) -> Best | None:
    """Returns the best weights among the steps up to one; the earlier ones where scores are equal.

    Weights of later steps, from before a kill, do not count: those steps are taken and scored again; a run that
    begins removes them (`drop_unreached`).
    """
    notes = [(uri, read_json(f"{uri}/complete.json")) for uri in _directories(f"{state}/best")]
    found = [Best(uri, note["step"], note["score"]) for uri, note in notes if note and note["step"] <= last_step]
    return max(found, key=lambda one: (one.score, -one.step), default=None)


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
    engine: Any, state: str, owner: str, step: int, records: Sequence[dict[str, Any]], recent: Sequence[float],
    zero_stage: int, keep: int, average: Average | None = None,
) -> None:  # fmt: skip
    """Writes a checkpoint; all ranks call it. Older ones beyond `keep` go once it is complete.

    Args:
        engine: DeepSpeed's.
        state: The run's directory or URI, seen by all ranks.
        owner: This run's name, from `claim`.
        step: Steps done.
        records: What was logged up to this step; used on rank 0.
        recent: The last losses.
        zero_stage: Of the engine.
        keep: Complete checkpoints to keep.
        average: Of the weights.
    """
    require_owner(state, owner)
    uri = f"{state}/checkpoints/step-{step:08d}-{owner}"
    if rank() == 0:
        _remove(uri)  # what a lost worker left half-written
    _barrier()
    with _directory(uri, download=False) as directory:
        save_file(_own_tensors(engine, zero_stage, average), f"{directory}/part-{rank():03d}.safetensors")
        if rank() == 0:
            write_records(f"{directory}/{METRICS}", records)
    _barrier()
    if rank() == 0:
        require_owner(state, owner)
        write_json(f"{uri}/complete.json", {"step": step, "recent": list(recent), "workers": world_size()})
        complete = [d for d in _directories(f"{state}/checkpoints") if read_json(f"{d}/complete.json") is not None]
        for old in set(_directories(f"{state}/checkpoints")) - set(complete[-keep:]):
            _remove(old)
        # Only now: a run killed before would have gone on from an earlier step, and from what was best then.
        kept = best(state, step)
        for old in _directories(f"{state}/best"):
            if kept is not None and old != kept.uri:
                _remove(old)


def drop_unreached(state: str, owner: str, done: int) -> None:
    """Removes best weights of steps beyond `done` and half-written ones; all ranks call it before they train on.

    They are of a run that was killed, or lost a worker, behind its last checkpoint. Those steps are taken again, with
    other workers to another rounding, and must not be found better than their own weights.
    """
    if rank() == 0:
        require_owner(state, owner)
        for uri in _directories(f"{state}/best"):
            note = read_json(f"{uri}/complete.json")
            if note is None or note["step"] > done:
                _remove(uri)
    _barrier()


def save_best(module: nn.Module, state: str, owner: str, step: int, score: float) -> Best:
    """Writes the weights as they are now beside the earlier best ones; all ranks call it."""
    require_owner(state, owner)
    uri = f"{state}/best/step-{step:08d}-{owner}"
    tensors = {}
    for name, parameter in trained(module).items():
        tensor = whole(local(parameter), parameter)
        if rank() == 0:
            tensors[f"{WEIGHT}/{name}"] = _copy(tensor)
    if rank() == 0:
        _remove(uri)
        with _directory(uri, download=False) as directory:
            save_file(tensors, f"{directory}/model.safetensors")
        require_owner(state, owner)
        write_json(f"{uri}/complete.json", {"step": step, "score": score})
    return Best(uri, step, score)


class Reader:
    """The tensors of an opened checkpoint, read one at a time."""

    def __init__(self, directory: str) -> None:
        self._files: dict[str, Any] = {}
        for file in sorted(Path(directory).glob("*.safetensors")):
            opened = safe_open(file, "pt")
            self._files |= dict.fromkeys(opened.keys(), opened)

    def __call__(self, name: str, kind: str) -> torch.Tensor | None:
        """Returns a parameter's tensor of a kind (its weight, its average, Adam's keys), or None."""
        key = f"{kind}/{name}"
        return self._files[key].get_tensor(key) if key in self._files else None

    def put_weights(self, module: nn.Module, kind: str = WEIGHT) -> None:
        """Copies the weights into a module that holds them whole, such as one that no engine is around yet."""
        for name, parameter in trained(module).items():
            parameter.data.copy_(self(name, kind))


@contextlib.contextmanager
def opened(uri: str) -> Iterator[Reader]:
    """Opens the tensors of a checkpoint, which are fetched first if they are not local."""
    with _directory(uri, download=True) as directory:
        yield Reader(directory)


def write_records(uri: str, records: Sequence[dict[str, Any]]) -> None:
    """Writes JSON lines."""
    fs, path = filesystem(uri)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def append_records(uri: str, records: Sequence[dict[str, Any]]) -> None:
    """Writes JSON lines behind those of a local file."""
    with open(filesystem(uri)[1], "ab") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records).encode())


def read_records(uri: str) -> list[dict[str, Any]]:
    """Reads JSON lines."""
    fs, path = filesystem(uri)
    return [json.loads(line) for line in fs.cat_file(path).splitlines()]


def _own_tensors(engine: Any, zero_stage: int, average: Average | None) -> dict[str, torch.Tensor]:
    """What this rank writes: all kinds of every W-th parameter."""
    own: dict[str, torch.Tensor] = {}
    for index, (name, parameter, state) in enumerate(optimizer_states(engine, zero_stage)):
        tensors = {WEIGHT: whole(local(parameter), parameter), **state}
        if average is not None:
            tensors[AVERAGE] = whole(average.held[name], parameter)
        if index % world_size() == rank():
            own |= {f"{kind}/{name}": _copy(tensor) for kind, tensor in tensors.items()}
    return own


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    # A copy on a CPU too: safetensors refuses views of one buffer, which ZeRO 1 and 2 make of the weights.
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _directories(parent: str) -> list[str]:
    fs, path = filesystem(parent)
    if not fs.exists(path):
        return []
    names = sorted(entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))
    return [f"{parent}/{name}" for name in names if name.startswith("step-")]


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
