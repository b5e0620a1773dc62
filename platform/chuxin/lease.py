"""A lease on an artifact: one driver computes a stage at a time, and the time all its drivers took adds up.

    ARTIFACT/drivers/20261123T181500-3fa9c2d1.json    one driver's note: host, process, seconds so far

A driver rewrites its note every few seconds. Whoever comes while another's note is fresh is told so; the note of a
process that is gone, on this host, holds nobody up. Leaves out: fencing of workers that outlive their driver
(training/checkpoint.py), and mutual exclusion to the millisecond: partitions are committed whole by any driver, so
two that start at the same instant waste work but spoil nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from chuxin.errors import InputError
from chuxin.files import filesystem, read_json, write_json

BEAT_S = 5.0
"""Seconds between two rewrites of a note; what a kill can leave uncounted."""
STALE_S = 30.0
"""A driver on another host counts as gone after this: six missed beats."""


@contextlib.contextmanager
def held(artifact: str, stage: str) -> Iterator[Callable[[], float]]:
    """Holds an artifact while the block runs.

    Args:
        artifact: Directory or URI.
        stage: Named in the error.

    Yields:
        A function that tells the wall seconds of all drivers up to now, this one included.

    Raises:
        InputError: Another driver is computing it.
    """
    notes = require_free(artifact, stage)
    started, ended, before = time.time(), threading.Event(), sum(note["seconds"] for note in notes)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(started))}-{uuid.uuid4().hex[:8]}"
    note = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}

    def beat(done: bool) -> None:
        now = time.time()
        write_json(f"{artifact}/drivers/{name}.json", {**note, "seconds": now - started, "at": now, "ended": done})

    def beats() -> None:
        while not ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a full quota, a hiccup of NFS: the next beat may come through
                beat(False)

    beat(False)
    thread = threading.Thread(target=beats, name="lease", daemon=True)
    thread.start()
    try:
        yield lambda: before + time.time() - started
    finally:
        ended.set()
        thread.join()
        beat(True)


def require_free(artifact: str, stage: str) -> list[dict]:
    """Returns the notes of all drivers that worked on an artifact; they are all gone.

    Raises:
        InputError: One of them is computing it.
    """
    notes = _notes(artifact)
    other = next((note for note in notes if not note["ended"] and _alive(note)), None)
    if other is not None:
        who = f"process {other['pid']} on {other['host']}, for {other['seconds']:.0f} s now"
        raise InputError(stage, f"it is being computed already ({who})", "Wait for it, or end that process")
    return notes


def _notes(artifact: str) -> list[dict]:
    fs, path = filesystem(f"{artifact}/drivers")
    fs.invalidate_cache()
    if not fs.exists(path):
        return []
    names = sorted(entry.rpartition("/")[2] for entry in fs.ls(path, detail=False) if entry.endswith(".json"))
    return [read_json(f"{artifact}/drivers/{name}") for name in names]


def _alive(note: dict) -> bool:
    if note["host"] == socket.gethostname():
        return _born(note["pid"]) == note["born"]
    return time.time() - note["at"] < STALE_S


def _born(pid: int) -> str:
    """When a process of this host started, in the kernel's ticks; "" if there is none: pids are used again."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] == "Z" else fields[19]
