"""Lines and errors of a training run on their way from the workers to the driver, each in a small file of its own.

    STATE/told/OWNER/line-STARTED-WRITER-00000003.json   a line of rank 0 for the terminal; the driver removes it
                     error-00001.json                    an error of rank 1 that the user can put right
                     metrics.jsonl                       see records.py

Ray keeps what workers print in its own logs, so lines go through the run's state, which driver and workers both see.
No file is written twice, and only the driver removes any: a line is lost neither to a worker that takes another's
place nor to one of a killed driver that is still at work, which writes under that driver's name. An error goes the
same way: raised in a worker alone, Ray Train would try it again.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from chuxin.errors import InputError
from chuxin.files import filesystem, read_json, write_json

AGREED_S = 3.0
"""How long a rank with an error waits for those of the others: a loss that is no number is one on all of them."""


class Teller:
    """Rank 0's end: adds lines. A replaced worker has one of its own, whose lines come later."""

    def __init__(self, state: str, owner: str) -> None:
        self._prefix = f"{told(state, owner)}/line-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        self._lines = 0

    def line(self, text: str) -> None:
        """Adds a line."""
        write_json(f"{self._prefix}-{self._lines:08d}.json", text)
        self._lines += 1


@contextlib.contextmanager
def followed(state: str, owner: str, log: Callable[[str], None], every: float = 0.5) -> Iterator[None]:
    """The driver's end: logs lines while the block runs, and what is left of them after it.

    What earlier drivers' workers told is removed first: nobody waits for it any more.
    """
    stopped = threading.Event()
    for other in set(_names(f"{state}/told")) - {owner}:
        with contextlib.suppress(OSError):  # one that is still at work has just added something; it goes next time
            _remove(f"{state}/told/{other}")

    def look() -> None:
        for uri in _files(state, owner, "line-"):
            log(read_json(uri))
            _remove(uri)

    def follow() -> None:
        while not stopped.wait(every):
            look()

    thread = threading.Thread(target=follow, name="training-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        look()


def leave_error(state: str, owner: str, rank: int, error: InputError) -> None:
    """Leaves a rank's error for the driver."""
    write_json(f"{told(state, owner)}/error-{rank:05d}.json", list(error.args))


def error_left(state: str, owner: str) -> InputError | None:
    """Returns the error of the lowest rank that left one."""
    left = _files(state, owner, "error-")
    return InputError(*read_json(left[0])) if left else None


def all_left_one(state: str, owner: str, world: int, wait: float = AGREED_S) -> bool:
    """Waits a little for the errors of all ranks; false if some have none and may wait for this one for ever."""
    deadline = time.monotonic() + wait
    while len(_files(state, owner, "error-")) < world:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def told(state: str, owner: str) -> str:
    """Returns the directory of what one driver's workers tell."""
    return f"{state}/told/{owner}"


def _files(state: str, owner: str, prefix: str) -> list[str]:
    """What begins with a prefix, whole files only."""
    directory = told(state, owner)
    names = (name for name in _names(directory) if name.startswith(prefix) and name.endswith(".json"))
    return [f"{directory}/{name}" for name in names]


def _names(uri: str) -> list[str]:
    """Names in a directory, sorted; none if it does not stand yet."""
    fs, path = filesystem(uri)
    fs.invalidate_cache(path)  # object stores' clients remember listings, and others write here
    try:
        return sorted(entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []


def _remove(uri: str) -> None:
    fs, path = filesystem(uri)
    fs.rm(path, recursive=True)
