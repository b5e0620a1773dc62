"""The passage store: texts, hashes, half-precision vectors and inverted lists in memory-mapped shards.

A shard is a directory:

    ids.npy, hashes.npy      int64 [P]: a passage's id and the hash of its text; a text stands in a store once
    sorted.npy, order.npy    int64 [P]: the hashes in ascending order, and the row of each
    texts.bin, offsets.npy   UTF-8, and int64 [P + 1] bytes where each text begins
    dense.npy                float16 [P, H], each of length 1 before rounding
    NAME-SEGMENT/            inverted lists (postings.py) of the rows from SEGMENT · segment_rows on

Nothing is read whole: opening a store of 10^8 passages costs a few file handles a shard. Leaves out: which passages
belong in it and who owns a text that occurs twice (mining).

Shapes: P passages of a shard, H embedding width, M texts asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from chuxin.errors import InputError
from chuxin.search.postings import Lists, write_lists

if TYPE_CHECKING:
    from chuxin.artifacts import Artifact

NOTE = "shard.json"
SHARD_PREFIX = "store-"
"""How the keys of partitions that hold a shard begin."""


class Chunk(NamedTuple):
    """Some passages on their way into a shard."""

    texts: Sequence[str]
    dense_MH: np.ndarray
    """float, of length 1."""
    lists: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
    """By name key, passage (from 0 in this chunk), value and length, as `write_lists` takes them."""


def write_shard(
    path: str, ids_P: np.ndarray, hashes_P: np.ndarray, width: int, chunks: Iterable[Chunk], segment_rows: int
) -> None:
    """Writes a shard from its passages in order; holds one segment's lists, and of texts and vectors one chunk.

    Args:
        path: A directory that does not exist yet.
        ids_P: int64, at least one.
        hashes_P: int64, each once.
        width: H.
        chunks: Together P passages, in the order of the ids.
        segment_rows: Passages whose inverted lists are sorted together.

    Raises:
        RuntimeError: The chunks hold more or fewer passages than there are ids.
        OSError: The disk is full.
    """
    Path(path).mkdir(parents=True)
    order = np.argsort(hashes_P, kind="stable")
    for name, array in (("ids", ids_P), ("hashes", hashes_P), ("sorted", hashes_P[order]), ("order", order)):
        np.save(f"{path}/{name}.npy", array)
    shape = (len(ids_P), width)
    dense_PH = np.lib.format.open_memmap(f"{path}/dense.npy", mode="w+", dtype=np.float16, shape=shape)
    with open(f"{path}/dense.npy", "r+b") as file:  # a full disk is an error here, and a dead process in a mapped page
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    offsets, row, pending = np.zeros(len(ids_P) + 1, np.int64), 0, _Segments(path, segment_rows)
    with open(f"{path}/texts.bin", "wb") as file:
        for chunk in chunks:
            encoded = [text.encode() for text in chunk.texts]
            end = row + len(encoded)
            if end > len(ids_P):
                break
            file.write(b"".join(encoded))
            offsets[row + 1 : end + 1] = offsets[row] + np.cumsum([len(text) for text in encoded])
            dense_PH[row:end] = chunk.dense_MH
            pending.add(chunk.lists, len(encoded))
            row = end
        else:
            end = row
    if end != len(ids_P):
        raise RuntimeError(f"{path}: {end} passages came for {len(ids_P)} ids")
    pending.close()
    dense_PH.flush()
    np.save(f"{path}/offsets.npy", offsets)
    note = {"passages": len(ids_P), "width": width, "segment_rows": segment_rows, "lists": pending.written}
    Path(f"{path}/{NOTE}").write_text(json.dumps(note) + "\n", encoding="utf-8")


class _Segments:
    """Gathers inverted lists until a segment is full, so that a shard of any size sorts a bounded number."""

    def __init__(self, path: str, rows: int) -> None:
        self._path, self._rows, self._held = path, rows, 0
        self._parts: dict[str, list[tuple[np.ndarray, ...]]] = {}
        self._first = self._next = 0
        self.written: list[list] = []
        """[name, first row] of every directory of lists."""

    def add(self, lists: dict[str, tuple[np.ndarray, ...]], rows: int) -> None:
        for name, (key, passage, value, length) in lists.items():
            own = (key, passage + np.int32(self._held), value, length)
            self._parts.setdefault(name, []).append(own)
        self._held += rows
        if self._held >= self._rows:
            self.close()

    def close(self) -> None:
        for name, parts in self._parts.items():
            write_lists(f"{self._path}/{name}-{self._first:09d}", *map(np.concatenate, zip(*parts, strict=True)))
            self.written.append([name, self._first])
        self._first, self._held, self._parts = self._first + self._held, 0, {}


class Shard:
    """A shard, memory-mapped; its arrays are read as they are used."""

    def __init__(self, path: str) -> None:
        note = json.loads(Path(f"{path}/{NOTE}").read_text(encoding="utf-8"))
        self.path, self.passages, self.width = path, note["passages"], note["width"]
        self.ids_P, self.hashes_P, self._sorted_P, self._order_P, self._offsets = (
            np.load(f"{path}/{name}.npy", mmap_mode="r") for name in ("ids", "hashes", "sorted", "order", "offsets")
        )
        self.dense_PH = np.load(f"{path}/dense.npy", mmap_mode="r")
        self._lists = note["lists"]

    def lists(self, name: str) -> list[tuple[int, Lists]]:
        """Returns the inverted lists of a name, each with the row its passages count from."""
        return [(first, Lists(f"{self.path}/{own}-{first:09d}")) for own, first in self._lists if own == name]

    def rows(self, hashes_M: np.ndarray) -> np.ndarray:
        """Returns the rows int64 [M] of texts by their hash, −1 where the shard does not hold one."""
        place = np.minimum(np.searchsorted(self._sorted_P, hashes_M), self.passages - 1)
        return np.where(self._sorted_P[place] == hashes_M, self._order_P[place], -1)

    def texts(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the texts of rows, in their order."""
        with open(f"{self.path}/texts.bin", "rb") as file:
            return [os.pread(file.fileno(), int(self._offsets[row + 1] - self._offsets[row]),
                             int(self._offsets[row])).decode() for row in rows]  # fmt: skip


def shard_uris(artifact: Artifact) -> list[str]:
    """Returns where an artifact's shards stand, in the order of their keys; none if it has no store.

    A shard is a directory of a partition, named like the partition's key. On an object store it has to be fetched.
    """
    return [f"{artifact.uri}/parts/{p['directory']}/{p['key']}" for p in artifact.partitions()
            if p["key"].startswith(SHARD_PREFIX) and p["key"] in p["files"]]  # fmt: skip


class PassageStore:
    """All shards of a mine stage's store.

    Args:
        paths: The shards' directories, in the order of their keys.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.shards = [Shard(path) for path in paths]

    @property
    def passages(self) -> int:
        """The number of passages."""
        return sum(shard.passages for shard in self.shards)

    def texts(self, hashes_M: np.ndarray) -> list[str]:
        """Returns texts by their hash, in the order asked for; each distinct one is read once.

        Raises:
            InputError: The store does not hold one.
        """
        wanted, inverse = np.unique(np.asarray(hashes_M, np.int64), return_inverse=True)
        found: list[str | None] = [None] * len(wanted)
        for shard in self.shards:
            rows = shard.rows(wanted)
            held = np.flatnonzero(rows >= 0)
            held = held[np.argsort(rows[held])]  # in the order of the file
            for place, text in zip(held.tolist(), shard.texts(rows[held]), strict=True):
                found[place] = text
        if None in found:
            raise InputError(f"text hash {wanted[found.index(None)]}", "the passage stands in no shard of the store",
                             "Give `store` the mine stage whose candidates these are")
        return [found[place] for place in inverse]

    def at(self, index_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and text hashes, int64 [M], of passages by their number in the order of shards and rows."""
        ids, hashes = np.empty(len(index_M), np.int64), np.empty(len(index_M), np.int64)
        for shard, mine, rows in self._owners(index_M):
            ids[mine], hashes[mine] = shard.ids_P[rows], shard.hashes_P[rows]
        return ids, hashes

    def vectors(self, index_M: np.ndarray) -> np.ndarray:
        """Returns the dense vectors of passages by their number, float32 [M, H]."""
        found_MH = np.empty((len(index_M), self.shards[0].width), np.float32)
        for shard, mine, rows in self._owners(index_M):
            found_MH[mine] = shard.dense_PH[rows]
        return found_MH

    def _owners(self, index_M: np.ndarray) -> Iterator[tuple[Shard, np.ndarray, np.ndarray]]:
        bounds = np.cumsum([0, *(shard.passages for shard in self.shards)])
        owner_M = np.searchsorted(bounds, index_M, side="right") - 1
        for number in np.unique(owner_M).tolist():
            mine = np.flatnonzero(owner_M == number)
            yield self.shards[number], mine, index_M[mine] - bounds[number]
