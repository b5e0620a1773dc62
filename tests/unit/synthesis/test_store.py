"""The answer store: what is stored stays, through torn files, several writers, kill -9 and a full disk."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from chuxin.errors import InputError
from chuxin.synthesis.store import AnswerStore, consolidate, remove

SOURCE_ROOT = str(Path(__file__).resolve().parents[3] / "platform")


def key(number: int) -> bytes:
    import xxhash

    return xxhash.xxh3_128_digest(str(number).encode())


def test_what_is_put_is_got_by_this_and_the_next_store(tmp_path: Path) -> None:
    folder = str(tmp_path / "answers")
    with AnswerStore(folder) as store:
        assert store.get(key(1)) is None
        for number in range(200):
            store.put(key(number), ["答案", number, {"是": -0.1}])
        assert store.get(key(7)) == ["答案", 7, {"是": -0.1}]
        store.put(key(7), ["另一个"])
        assert store.get(key(7))[1] == 7 and len(store) == 200
    assert len(list(tmp_path.glob("answers/*.idx"))) == 1
    with AnswerStore(folder) as store:
        assert len(store) == 200 and [store.get(key(n))[1] for n in range(200)] == list(range(200))
        assert store.get(key(200)) is None and store.torn == []
        assert len(list(tmp_path.glob("answers/*.log"))) == 1  # who only reads writes nothing


def test_a_wrong_index_is_not_believed(tmp_path: Path) -> None:
    with AnswerStore(str(tmp_path)) as store:
        store.put(key(1), "eins")
    index = next(tmp_path.glob("*.idx"))
    data = bytearray(index.read_bytes())
    data[-3] ^= 1
    index.write_bytes(data)
    with AnswerStore(str(tmp_path)) as store:
        assert store.get(key(1)) == "eins"


@pytest.mark.parametrize("cut", [1, 5, 11, 12, 20, 30])
def test_a_torn_tail_is_skipped_and_told(tmp_path: Path, cut: int) -> None:
    with AnswerStore(str(tmp_path)) as store:
        for number in range(10):
            store.put(key(number), number)
    log = next(tmp_path.glob("*.log"))
    size = log.stat().st_size
    os.truncate(log, size - cut)
    with AnswerStore(str(tmp_path)) as store:
        lost = [n for n in range(10) if store.get(key(n)) is None]
        assert lost == ([9] if cut < size / 10 else [8, 9])
        assert len(store.torn) == (0 if cut == size // 10 else 1)
        store.put(key(9), 99)
        assert store.get(key(9)) == 99 and store.get(key(3)) == 3


def test_damage_in_the_middle_is_never_read_as_an_answer(tmp_path: Path) -> None:
    with AnswerStore(str(tmp_path)) as store:
        for number in range(10):
            store.put(key(number), "x" * 50)
    log, index = next(tmp_path.glob("*.log")), next(tmp_path.glob("*.idx"))
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 0xFF
    log.write_bytes(data)
    for _ in range(2):  # by the index and by reading the file
        with AnswerStore(str(tmp_path)) as store:
            found = [store.get(key(n)) for n in range(10)]
            assert set(found) <= {None, "x" * 50} and None in found
        index.unlink(missing_ok=True)


WRITER = """
import sys, xxhash
sys.path.insert(0, sys.argv[1])
from chuxin.synthesis.store import AnswerStore
store = AnswerStore(sys.argv[2])
for number in range(int(sys.argv[3]), int(sys.argv[4])):
    store.put(xxhash.xxh3_128_digest(str(number).encode()), {"n": number, "text": "字" * (number % 300)})
    print(number, flush=True)
if sys.argv[5] == "close": store.close()
"""


def writer(folder: Path, first: int, last: int, end: str = "close") -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, SOURCE_ROOT, str(folder), str(first), str(last), end]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_writers_in_several_processes_lose_nothing(tmp_path: Path) -> None:
    with AnswerStore(str(tmp_path)) as watcher:
        running = [writer(tmp_path, n * 300, (n + 1) * 300) for n in range(3)]
        assert all(p.wait(60) == 0 for p in running)
        time.sleep(1.1)
        assert watcher.get(key(42))["n"] == 42  # stored after this one was opened
        assert all(watcher.get(key(n))["n"] == n for n in range(900))
    for process in running:
        process.stdout.close()


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    process = writer(tmp_path, 0, 1_000_000)
    said = [int(process.stdout.readline()) for _ in range(500)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout if line.endswith("\n") and line.strip()]
    process.wait()
    process.stdout.close()
    with AnswerStore(str(tmp_path)) as store:
        assert all(store.get(key(n))["n"] == n for n in said)
        assert len(said) <= len(store) <= len(said) + 1


def test_nothing_is_removed_while_a_run_writes(tmp_path: Path) -> None:
    """It would go on writing to a file that has no name any more."""
    with AnswerStore(str(tmp_path)) as store:
        store.put(b"k" * 16, ["a"])
        with pytest.raises(InputError, match="a run writes answers here"):
            remove(str(tmp_path), lambda value: True)
        store.put(b"l" * 16, ["b"])
    assert remove(str(tmp_path), lambda value: value == ["a"]) == 1
    with AnswerStore(str(tmp_path)) as store:
        assert (store.get(b"k" * 16), store.get(b"l" * 16)) == (None, ["b"])


@pytest.mark.parametrize("closed", [True, False])
def test_a_removal_sees_what_stands_behind_a_damaged_record(tmp_path: Path, closed: bool) -> None:
    """As far as anybody can read it, and what nobody can goes with it: it may be what is to be forgotten."""
    with AnswerStore(str(tmp_path)) as store:
        for number in range(10):
            store.put(key(number), ["文", number])
    (path,) = tmp_path.glob("*.log")
    data = bytearray(path.read_bytes())
    data[data.find(b"\xe6\x96\x87\",4]")] ^= 1
    path.write_bytes(data)
    if not closed:
        path.with_suffix(".idx").unlink()
    assert remove(str(tmp_path), lambda value: value[1] in (1, 7)) == (2 if closed else 1)
    with AnswerStore(str(tmp_path)) as store:
        left = [number for number in range(10) if store.get(key(number))]
        assert left == ([0, 2, 3, 5, 6, 8, 9] if closed else [0, 2, 3]) and not store.torn
    assert b",7]" not in path.read_bytes()


def test_a_full_disk_says_so_and_damages_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AnswerStore(str(tmp_path))
    store.put(key(1), "kept")
    write = os.write

    def full(handle: int, data: bytes) -> int:
        if handle != store._writer:
            return write(handle, data)
        write(handle, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(InputError, match="No space left"):
        store.put(key(2), "lost")
    monkeypatch.undo()
    assert store.get(key(1)) == "kept" and store.get(key(2)) is None
    store.put(key(3), "after")
    store.close()
    with AnswerStore(str(tmp_path)) as again:
        assert (again.get(key(1)), again.get(key(2)), again.get(key(3)), again.torn) == ("kept", None, "after", [])


def test_a_really_full_disk(tmp_path: Path) -> None:
    """/dev/full takes nothing: the system's own error, not a made one."""
    store = AnswerStore(str(tmp_path))
    store.put(key(1), "kept")
    os.dup2(os.open("/dev/full", os.O_WRONLY), store._writer)
    with pytest.raises((InputError, OSError)):
        store.put(key(2), "lost")
    with AnswerStore(str(tmp_path)) as again:
        assert again.get(key(1)) == "kept"


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="answer store"):
        AnswerStore(str(tmp_path / "file" / "answers"))


def test_a_key_costs_sixteen_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import chuxin.synthesis.store as module

    monkeypatch.setattr(module, "_MERGE_AT", 100)
    with AnswerStore(str(tmp_path)) as store:
        for number in range(1000):
            store.put(key(number), number)
        assert store._keys.nbytes + store._places.nbytes >= 16 * 900 and len(store._new) < 100
        assert store._keys.dtype == np.int64 and np.all(np.diff(store._keys) >= 0)
        assert all(store.get(key(n)) == n for n in range(0, 1000, 37))


def test_keys_that_share_their_first_bytes_are_told_apart(tmp_path: Path) -> None:
    first, second = b"\x01" * 8 + b"a" * 8, b"\x01" * 8 + b"b" * 8
    with AnswerStore(str(tmp_path)) as store:
        store.put(first, "a")
        assert store.get(second) is None
        store.put(second, "b")
    with AnswerStore(str(tmp_path)) as store:
        assert (store.get(first), store.get(second)) == ("a", "b")


def written(folder: Path, logs: int, first: int = 0) -> range:
    """Stores ten answers in each of so many logs."""
    for log in range(first, first + logs):
        with AnswerStore(str(folder)) as store:
            for number in range(10 * log, 10 * log + 10):
                store.put(key(number), number)
    return range(10 * (first + logs))


def all_are_there(folder: Path, numbers: range, held: int) -> None:
    with AnswerStore(str(folder)) as store:
        assert [store.get(key(n)) for n in numbers] == [*numbers] and store.get(key(-1)) is None
        assert len(store) == len(numbers) and len(store._keys) + len(store._new) == held


def test_many_closed_logs_are_found_by_one_index_that_no_process_holds(tmp_path: Path) -> None:
    consolidate(str(tmp_path / "none"))
    numbers = written(tmp_path, 63)
    consolidate(str(tmp_path))
    all_are_there(tmp_path, numbers, 630)  # not worth it yet
    numbers = written(tmp_path, 2, 63)
    consolidate(str(tmp_path))
    all_are_there(tmp_path, numbers, 0)
    numbers = written(tmp_path, 5, 65)
    all_are_there(tmp_path, numbers, 50)
    for first in (70, 135, 200):
        numbers = written(tmp_path, 65, first)
        consolidate(str(tmp_path))
        all_are_there(tmp_path, numbers, 0)
    assert len(list(tmp_path.glob("index-*.npy"))) == 2 and not list(tmp_path.glob("*.tmp"))
    with AnswerStore(str(tmp_path)) as store:  # what is stored stays the first
        store.put(key(5), "another")
        assert store.get(key(5)) == 5 and store._writer < 0


def test_one_index_leaves_out_what_is_being_written_and_what_was_torn(tmp_path: Path) -> None:
    numbers = written(tmp_path, 66)
    torn = sorted(tmp_path.glob("*.log"))[3]
    torn.with_suffix(".idx").unlink()  # its writer was killed
    with open(torn, "ab") as file:
        file.write(b"\x07\x00")
    with AnswerStore(str(tmp_path)) as writing:
        writing.put(key(10**6), "x")
        consolidate(str(tmp_path))
        assert not list(tmp_path.glob("index*"))
    consolidate(str(tmp_path))
    with AnswerStore(str(tmp_path)) as store:
        assert [store.get(key(n)) for n in numbers] == [*numbers] and store.get(key(10**6)) == "x"
        assert [one.file for one in store.torn] == [torn.name] and len(store._new) == 10


def test_a_log_that_grows_behind_its_index_is_read_to_its_end(tmp_path: Path) -> None:
    """No lock keeps it from that where locks hold on one node only, or in a copy of a store that was in use."""
    numbers = written(tmp_path, 65)
    consolidate(str(tmp_path))
    with AnswerStore(str(tmp_path)) as store:
        store.put(key(700), 700)
        (log,) = {path for path in tmp_path.glob("*.log") if not path.with_suffix(".idx").exists()}
    grown = sorted(tmp_path.glob("*.log"))[0]
    with open(grown, "ab") as file:
        file.write(log.read_bytes())
    log.unlink()
    with AnswerStore(str(tmp_path)) as store:
        assert [store.get(key(n)) for n in (*numbers, 700)] == [*numbers, 700]


def test_one_index_waits_for_a_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it knew of the logs before it had the lock is not so any more."""
    import chuxin.synthesis.store as module

    written(tmp_path, 65)
    consolidate(str(tmp_path))
    numbers, locked = written(tmp_path, 65, 65), module._locked

    def late(directory: Path, how: int, must: bool = False) -> int:
        if must:
            remove(str(tmp_path), lambda value: value % 10 == 0)
        return locked(directory, how, must)

    monkeypatch.setattr(module, "_locked", late)
    consolidate(str(tmp_path))
    with AnswerStore(str(tmp_path)) as store:
        assert [n for n in numbers if store.get(key(n)) is not None] == [n for n in numbers if n % 10]


def test_a_removal_sees_what_was_closed_while_it_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import chuxin.synthesis.store as module

    written(tmp_path, 1)
    locked = module._locked

    def late(directory: Path, how: int, must: bool = False) -> int:
        if how & module.fcntl.LOCK_EX:
            written(tmp_path, 1, 1)
        return locked(directory, how, must)

    monkeypatch.setattr(module, "_locked", late)
    assert remove(str(tmp_path), lambda value: value in (3, 13)) == 2


def test_one_index_is_only_worth_what_it_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk ends no stage whose answers are all there, and leaves nothing behind."""
    numbers = written(tmp_path, 65)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    consolidate(str(tmp_path))
    monkeypatch.undo()
    all_are_there(tmp_path, numbers, 650)
    consolidate(str(tmp_path))
    all_are_there(tmp_path, numbers, 0)
    assert not list(tmp_path.glob("*.tmp"))


def test_one_index_is_not_believed_against_the_logs(tmp_path: Path) -> None:
    numbers = written(tmp_path, 65)
    consolidate(str(tmp_path))
    assert remove(str(tmp_path), lambda value: value == 7) == 1
    with AnswerStore(str(tmp_path)) as store:
        assert store.get(key(7)) is None and store.get(key(8)) == 8 and len(store) == 649
    consolidate(str(tmp_path))
    (table,) = tmp_path.glob("index-*.npy")
    for broken in (lambda: os.truncate(table, 64), lambda: os.truncate(table, 0), table.unlink):
        broken()
        with AnswerStore(str(tmp_path)) as store:
            assert [store.get(key(n)) for n in numbers if n != 7] == [n for n in numbers if n != 7]
    consolidate(str(tmp_path))
    next(tmp_path.glob("*.log")).unlink()  # taken away by hand
    with AnswerStore(str(tmp_path)) as store:
        assert len(store) in (639, 640)


def test_what_others_store_costs_its_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import chuxin.synthesis.store as module

    monkeypatch.setattr(module, "_MERGE_AT", 100)
    with AnswerStore(str(tmp_path)) as one, AnswerStore(str(tmp_path)) as other:
        for number in range(150):
            one.put(key(number), number)
        sorted_keys = one._keys
        assert len(sorted_keys) >= 100
        for number in range(200, 205):
            other.put(key(number), number)
        one._refresh()
        assert one._keys is sorted_keys and [one.get(key(n)) for n in (3, 149, 204)] == [3, 149, 204]
