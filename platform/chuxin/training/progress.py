"""Lines and errors of a training run on their way from rank 0 to the terminal of the driver.

Ray keeps what workers print in its own logs, so lines go through a small file in the run's state, which driver and
workers both see. An error the user can put right goes the same way: raised in a worker, Ray Train would try it again.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator

from chuxin.artifacts import filesystem, read_json, write_json
from chuxin.errors import InputError

KEPT = 50
"""Lines in the file: more than are written between two looks of the driver."""


class Teller:
    """Rank 0's end: adds lines. A replaced worker begins anew, under another id."""

    def __init__(self, state: str) -> None:
        self._uri, self._id = f"{state}/progress.json", uuid.uuid4().hex
        self._lines: list[str] = []
        self._first = 0

    def line(self, text: str) -> None:
        """Adds a line."""
        self._lines.append(text)
        surplus = max(0, len(self._lines) - KEPT)
        self._lines, self._first = self._lines[surplus:], self._first + surplus
        write_json(self._uri, {"id": self._id, "first": self._first, "lines": self._lines})


@contextlib.contextmanager
def followed(state: str, log: Callable[[str], None], every: float = 0.5) -> Iterator[None]:
    """The driver's end: logs new lines while the block runs, and the last ones after it."""
    uri, stopped = f"{state}/progress.json", threading.Event()
    old = read_json(uri)  # of an earlier, killed driver
    seen: dict[str, int] = {old["id"]: old["first"] + len(old["lines"])} if old else {}

    def look() -> None:
        note = read_json(uri)
        if note is None:
            return
        known = seen.get(note["id"], 0)
        for index, text in enumerate(note["lines"], note["first"]):
            if index >= known:
                log(text)
        seen[note["id"]] = note["first"] + len(note["lines"])

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


def leave_error(state: str, error: InputError) -> None:
    """Leaves an error for the driver."""
    write_json(f"{state}/error.json", list(error.args))


def take_error(state: str) -> InputError | None:
    """Returns and removes the error that a worker left."""
    uri = f"{state}/error.json"
    left = read_json(uri)
    if left is None:
        return None
    fs, path = filesystem(uri)
    fs.rm_file(path)
    return InputError(*left)
