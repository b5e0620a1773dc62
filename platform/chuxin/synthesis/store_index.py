"""One index over the closed logs of an answer store, mapped into memory: a partition opens 10^7 answers in no time.

    answers/index.json            the logs that it covers, with their sizes then, and the name of its table
    answers/index-9f3a0c12.npy    int64 [2, answers]: 63 bits of each key, ascending, and its place

Without it every partition's process holds 16 bytes an answer, and several times that while it reads them: of 20 million
answers in 8,000 logs 1.6 GB and 4.8 s, with it 0.04 GB and 0.2 s. Pages of a mapped file are the node's, not a
process's. Leaves out: the logs (store.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from chuxin.files import write_json

_NAME = "index.json"
_TABLES = "index-*.npy"
_KEPT = 2
"""Tables that stay: the newest, and the one before it, which a store may just be reading on another node."""


def read(directory: Path) -> tuple[dict[str, int], np.ndarray]:
    """Returns the logs covered, each with the bytes of it that are, and the table, int64 [2, answers], mapped.

    Nothing where there is none, or where a log is gone or shorter now: the logs have it all. One that has grown, which
    no lock keeps from happening on every file system, is covered as far as it was.
    """
    with contextlib.suppress(OSError, ValueError, EOFError):  # none, just replaced by a newer one, or damaged
        noted = json.loads((directory / _NAME).read_bytes())
        table = np.load(directory / noted["table"], mmap_mode="r")
        logs = dict(noted["logs"])
        if all((directory / name).stat().st_size >= size for name, size in logs.items()):
            return logs, table
    return {}, np.zeros((2, 0), np.int64)


def write(directory: Path, logs: Mapping[str, int], keys: np.ndarray, places: np.ndarray) -> None:
    """Writes the index; what stands there is replaced at once or, if this is killed, not at all.

    Args:
        directory: The store's.
        logs: Bytes of each log that are covered; a place's upper bits are an index into these.
        keys: int64 [answers], in any order; of equal ones the earlier stay in front.
        places: int64 [answers].
    """
    _sweep(directory)
    order = np.argsort(keys, kind="stable")
    table = directory / f"index-{uuid.uuid4().hex[:8]}.npy"
    with open(table.with_suffix(".tmp"), "wb") as file:
        np.save(file, np.stack([keys[order], places[order]]))
        file.flush()
        os.fsync(file.fileno())
    table.with_suffix(".tmp").replace(table)
    write_json(str(directory / _NAME), {"logs": [*logs.items()], "table": table.name})
    for old in sorted(directory.glob(_TABLES), key=lambda path: path.stat().st_mtime_ns)[:-_KEPT]:
        old.unlink(missing_ok=True)


def forget(directory: Path) -> None:
    """Removes the index: the logs are about to change."""
    (directory / _NAME).unlink(missing_ok=True)
    _sweep(directory)
    for table in directory.glob(_TABLES):
        table.unlink(missing_ok=True)


def _sweep(directory: Path) -> None:
    """Removes what a killed or failed writing of the index left."""
    for left in directory.glob("index*.tmp"):
        left.unlink(missing_ok=True)
