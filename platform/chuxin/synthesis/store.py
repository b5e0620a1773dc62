"""The answer store: every answer an LLM ever gave, kept so that none of them is bought again, whatever is killed.

    answers/1764010203-4711-9f3a0c12.log    one file a writer: its records, appended
    answers/1764010203-4711-9f3a0c12.idx    its keys and places, sorted; written when the writer closes

A record is a frame: length (uint32), XXH3-64 of the payload (uint64), payload = key (16 bytes) + JSON. It is stored
once `put` returns, as far as killed processes go, and after `sync` against a power failure too. A tail that a kill
tore is skipped and told of; it was never acknowledged. Records are never moved or rewritten, so writers in any number
of processes need no lock. In memory a record costs 16 bytes: 63 bits of its key, and file number and offset in one
int64; the whole key is compared when it is read. Those of logs that the store's own index covers (store_index.py) cost
none. Writers share a lock on the directory's file `lock`, so that answers are removed, and that index is written, only
where none writes. Leaves out: what an answer holds (calls.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import struct
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import xxhash

from chuxin.errors import InputError
from chuxin.synthesis import store_index

_FRAME = struct.Struct("<IQ")
_KEY_BYTES = 16
_OFFSET_BITS = 40  # a file of up to 1 TiB, 8 million files
_LARGEST = 64 << 20
_MERGE_AT = 65_536
_SYNC_EVERY = 64
_SYNC_SECONDS = 1.0
_OPEN_FILES = 64
_LOCK = "lock"
_MANY = 64
"""Logs beyond the store's index from which on it is written anew: a stage of 48 partitions leaves as many logs."""
_LOG = re.compile(r"\d+-\d+-[0-9a-f]{8}\.log")


class Torn(NamedTuple):
    """What was skipped: `bytes` of a file from `offset` on."""

    file: str
    offset: int
    bytes: int


class AnswerStore:
    """Answers by key. One process uses one object, from one thread; processes share the directory.

    Args:
        directory: A local directory.

    Raises:
        InputError: The directory cannot be made or written.
    """

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.torn: list[Torn] = []
        self._files: list[Path] = []
        self._numbers: dict[str, int] = {}
        self._read_to: dict[str, int] = {}
        self._keys, self._places = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._new: dict[int, list[int]] = {}
        self._handles: OrderedDict[int, int] = OrderedDict()
        self._writer = self._lock = -1
        self._end = self._unsynced = 0
        self._synced = self._refreshed = 0.0
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(directory, f"the answer store cannot be made ({error.strerror})",
                             "Give execution.answers a local directory that can be written") from error
        logs, self._indexed = store_index.read(self.directory)
        for name in logs:
            self._number(name)
        self._read_to |= logs
        self._refresh()

    def __len__(self) -> int:
        return self._indexed.shape[1] + len(self._keys) + sum(map(len, self._new.values()))

    def get(self, key: bytes) -> Any | None:
        """Returns the value stored under a key of 16 bytes, by this or any other process, or None."""
        found = self._find(key)
        if found is None and time.monotonic() - self._refreshed > _SYNC_SECONDS:
            self._refresh()
            found = self._find(key)
        return found

    def put(self, key: bytes, value: Any) -> None:
        """Stores a value; a key that is stored already keeps its first.

        Raises:
            InputError: The disk is full or the file cannot be written; what was stored stays whole.
        """
        if self._find(key) is not None:
            return
        payload = key + orjson.dumps(value)
        frame = _FRAME.pack(len(payload), xxhash.xxh3_64_intdigest(payload)) + payload
        try:
            if self._writer < 0:
                self._open_writer()
            self._write(frame)
            self._remember(key, self._writer_number, self._end)
            self._end += len(frame)
            self._unsynced += 1
            if self._unsynced >= _SYNC_EVERY or time.monotonic() - self._synced > _SYNC_SECONDS:
                self.sync()
        except OSError as error:
            if self._writer >= 0:
                os.ftruncate(self._writer, self._end)  # never needs room; a torn frame would be skipped anyway
            raise InputError(str(self.directory), f"an answer could not be stored ({error.strerror})",
                             "Make room or move the answer store, and run again: what was stored stays") from error

    def sync(self) -> None:
        """Makes what was put survive a power failure."""
        if self._writer >= 0 and self._unsynced:
            os.fsync(self._writer)
        self._unsynced, self._synced = 0, time.monotonic()

    def close(self) -> None:
        """Syncs, writes the index of this writer's file and closes all files."""
        if self._writer >= 0:
            self.sync()
            os.close(self._writer)
            self._writer = -1
            self._seal(self._writer_number)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_writer(self) -> None:
        name = f"{int(time.time())}-{os.getpid()}-{uuid.uuid4().hex[:8]}.log"
        if self._lock < 0:
            self._lock = _locked(self.directory, fcntl.LOCK_SH)
        self._writer = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._writer_number, self._end, self._synced = self._number(name), 0, time.monotonic()
        directory = os.open(self.directory, os.O_RDONLY)
        os.fsync(directory)  # the file's name too
        os.close(directory)

    def _write(self, frame: bytes) -> None:
        done = 0
        while done < len(frame):
            done += os.write(self._writer, frame[done:])

    def _number(self, name: str) -> int:
        if name not in self._numbers:
            self._numbers[name] = len(self._files)
            self._files.append(self.directory / name)
        return self._numbers[name]

    def _remember(self, key: bytes, number: int, offset: int) -> None:
        self._take(np.array([_short(key)]), np.array([number << _OFFSET_BITS | offset]))

    def _take(self, keys: np.ndarray, places: np.ndarray) -> None:
        """Takes records in; few go to the unsorted rest, so that what others store a second costs its number alone."""
        if len(keys) + len(self._new) >= _MERGE_AT:
            self._merge(keys, places)
            return
        for short, place in zip(keys.tolist(), places.tolist(), strict=True):
            self._new.setdefault(short, []).append(place)

    def _merge(self, keys: np.ndarray, places: np.ndarray) -> None:
        pairs = [(k, p) for k, held in self._new.items() for p in held]
        self._new = {}
        fresh = np.array(pairs, np.int64).reshape(-1, 2)
        keys = np.concatenate([self._keys, keys, fresh[:, 0]])
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], np.concatenate([self._places, places, fresh[:, 1]])[order]

    def _find(self, key: bytes) -> Any | None:
        short = _short(key)
        found = [*self._new.get(short, ())]
        for keys, places in ((self._keys, self._places), self._indexed):
            first, last = np.searchsorted(keys, [short, short + 1])
            found[:0] = places[first:last].tolist()
        for place in found:
            payload = self._payload(place)
            if payload is not None and payload[:_KEY_BYTES] == key:
                return orjson.loads(payload[_KEY_BYTES:])
        return None

    def _payload(self, place: int) -> bytes | None:
        number, offset = place >> _OFFSET_BITS, place & ((1 << _OFFSET_BITS) - 1)
        if number not in self._handles:
            if len(self._handles) >= _OPEN_FILES:
                os.close(self._handles.popitem(last=False)[1])
            self._handles[number] = os.open(self._files[number], os.O_RDONLY)
        self._handles.move_to_end(number)
        head = os.pread(self._handles[number], _FRAME.size, offset)
        if len(head) < _FRAME.size:
            return None
        length, digest = _FRAME.unpack(head)
        payload = os.pread(self._handles[number], length, offset + _FRAME.size)
        return payload if xxhash.xxh3_64_intdigest(payload) == digest else None

    def _refresh(self) -> None:
        """Takes in what other processes have stored since."""
        keys, places = [], []
        self.torn = []
        for path in sorted(self.directory.glob("*.log")):
            number, size = self._number(path.name), path.stat().st_size
            start = self._read_to.get(path.name, 0)
            own = self._writer >= 0 and number == self._writer_number
            if own or size <= start:
                continue
            found, offsets, end = _records(path, start, size)
            if end < size:
                self.torn.append(Torn(path.name, end, size - end))
            self._read_to[path.name] = end
            keys.append(found)
            places.append(offsets | number << _OFFSET_BITS)
        if keys:
            self._take(np.concatenate(keys), np.concatenate(places))
        self._refreshed = time.monotonic()

    def _seal(self, number: int) -> None:
        path = self._files[number]
        found = [(short, offset) for short, offset, _ in _scan(path, 0)]
        table = np.array(sorted(found), np.int64).reshape(-1, 2)
        body = np.int64(path.stat().st_size).tobytes() + table.tobytes()
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(xxhash.xxh3_64_digest(body) + body)
            temporary.replace(path.with_suffix(".idx"))
        except OSError:
            # The index only spares the next reader a scan; on a full disk the records matter and are there.
            temporary.unlink(missing_ok=True)


def consolidate(directory: str) -> None:
    """Writes one index over the logs, if many have been closed since, or left by processes that were killed.

    It only saves memory and time: nothing is done where a run writes, on a file system without locks, which cannot
    tell, or on a full disk. A log with a torn tail stays out, so that it is told of.

    Args:
        directory: The store's; one that does not exist holds nothing.
    """
    with contextlib.suppress(OSError, InputError):
        if len(glob.glob("*.log", root_dir=directory)) >= _MANY:
            lock = _locked(Path(directory), fcntl.LOCK_EX | fcntl.LOCK_NB, must=True)
            try:
                _consolidate(Path(directory))
            finally:
                os.close(lock)


def _consolidate(directory: Path) -> None:
    logs, table = store_index.read(directory)
    fresh = sorted({path.name for path in directory.glob("*.log")} - logs.keys())
    if len(fresh) < _MANY:
        return
    keys, places, covered = [table[0]], [table[1]], len(logs)
    for path in (directory / name for name in fresh):
        size = path.stat().st_size
        found, offsets, end = _records(path, 0, size)
        if end == size:
            keys.append(found)
            places.append(offsets | len(logs) << _OFFSET_BITS)
            logs[path.name] = size
    if len(logs) > covered:
        store_index.write(directory, logs, np.concatenate(keys), np.concatenate(places))


def remove(directory: str, unwanted: Callable[[Any], bool]) -> int:
    """Removes stored values for good.

    A file with such a value is written anew without it and then put in its place, so a kill leaves it as it was.

    Args:
        directory: The store's; one that does not exist holds nothing.
        unwanted: Tells of a value whether it goes.

    Returns:
        The number of values removed.

    Raises:
        InputError: A run writes: what it stores from now on would go with the file that it writes to. Or the directory
            cannot be written.
    """
    if not os.path.isdir(directory):
        return 0
    if not _logs(directory):  # it may be anything by now
        return 0
    try:
        lock = _locked(Path(directory), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:
        raise InputError(directory, "answers stand here that cannot be removed (permission denied)",
                         "Run again as a user that may write here") from error
    try:
        store_index.forget(Path(directory))
        return sum(_without(path, unwanted) for path in _logs(directory))  # those of a run just ended too
    finally:
        os.close(lock)


def _logs(directory: str) -> list[Path]:
    return sorted(path for path in Path(directory).glob("*.log") if _LOG.fullmatch(path.name))


def _locked(directory: Path, how: int, must: bool = False) -> int:
    """Returns the descriptor of the directory's lock; a process that dies lets go of it.

    Opened for both, which a shared and an exclusive lock need on NFS. A file system without locks has none: there a
    removal cannot tell whether a run writes. With `must` that is an OSError.
    """
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, how)
    except BlockingIOError as error:
        os.close(lock)
        raise InputError(str(directory), "a run writes answers here",
                         "Wait until it has ended, and run again") from error
    except OSError as error:
        if must or error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            os.close(lock)
            raise
    return lock


def _without(path: Path, unwanted: Callable[[Any], bool]) -> int:
    """Writes a file anew if a value of it goes. What nobody can read goes too: it may hold what is unwanted."""
    data = path.read_bytes()
    index = _read_index(path, len(data))
    offsets = [offset for _, offset, _ in _scan(path, 0)] if index is None else sorted(index[1].tolist())
    frames = [frame for offset in offsets if (frame := _frame(data, offset))]
    kept = [frame for frame in frames if not unwanted(orjson.loads(frame[_FRAME.size + _KEY_BYTES :]))]
    if sum(map(len, kept)) < len(data):
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            file.write(b"".join(kept))
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".idx").unlink(missing_ok=True)
        temporary.replace(path)
    return len(frames) - len(kept)


def _frame(data: bytes, offset: int) -> bytes:
    """The frame that begins here, or nothing where it is damaged."""
    length, digest = _FRAME.unpack_from(data, offset)
    frame = data[offset : offset + _FRAME.size + length]
    return frame if xxhash.xxh3_64_intdigest(frame[_FRAME.size :]) == digest else b""


def _short(key: bytes) -> int:
    return int.from_bytes(key[:8], "little") & ((1 << 63) - 1)


def _scan(path: Path, start: int) -> Iterator[tuple[int, int, int]]:
    """Yields (63 bits of the key, offset, end of the frame) of every whole record from an offset on."""
    with open(path, "rb") as file:
        file.seek(start)
        offset = start
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            length, digest = _FRAME.unpack(head)
            if not _KEY_BYTES <= length <= _LARGEST:
                return
            payload = file.read(length)
            if len(payload) < length or xxhash.xxh3_64_intdigest(payload) != digest:
                return
            end = offset + _FRAME.size + length
            yield _short(payload), offset, end
            offset = end


def _records(path: Path, start: int, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Keys and offsets (int64 [records] each) of a file from `start` on, by its index where it has one, and their end.

    The end is less than `size` where a kill tore the tail.
    """
    closed = _read_index(path, size) if not start else None
    if closed is not None:
        return *closed, size
    records = np.array(list(_scan(path, start)), np.int64).reshape(-1, 3)
    return records[:, 0], records[:, 1], int(records[-1, 2]) if len(records) else start


def _read_index(path: Path, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys and offsets of a closed file, or None where there is no index or it is not of this file as it is."""
    index = path.with_suffix(".idx")
    if not index.exists():
        return None
    data = index.read_bytes()
    body = data[8:]
    if xxhash.xxh3_64_digest(body) != data[:8] or int.from_bytes(body[:8], "little") != size:
        return None
    table = np.frombuffer(body[8:], np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
