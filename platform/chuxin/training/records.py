"""metrics.jsonl of a run that is under way: every record at once or within seconds, none twice after a resume.

    STATE/told/OWNER/metrics.jsonl

A checkpoint has the records up to its step and the artifact all of them; this file has also those since the newest
checkpoint, so that they are there to look at when a run is stopped by its loss, an error or a kill. It begins with
what the checkpoint has: records of steps that are taken again are cut. Leaves out: which steps have a record
(worker.py).
"""

from __future__ import annotations

import time
from typing import Any

from chuxin.files import is_local
from chuxin.training.checkpoint import append_records, write_records

EVERY_S, SHARE = 5.0, 50.0
"""On object stores, where nothing can be appended, the whole file is written after so many seconds, and so seldom that
it takes at most a fiftieth of the time."""


class Records:
    """What rank 0 logged, as the newest checkpoint has it and then step by step.

    Args:
        uri: Of the file; None for ranks that write none.
        records: Up to the step that the run goes on from.
    """

    def __init__(self, uri: str | None, records: list[dict[str, Any]]) -> None:
        self.uri, self.all = uri, records
        self._local = uri is not None and is_local(uri)
        self._written, self._due = len(records), time.monotonic() + EVERY_S
        if uri is not None:
            write_records(uri, records)

    def add(self, record: dict[str, Any]) -> None:
        """Adds a record; a local file has it at once, since a rank that waits for a lost one is killed as it waits."""
        self.all.append(record)
        if self._local or time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Writes what is new."""
        if self.uri is None or self._written == len(self.all):
            return
        started = time.monotonic()
        if self._local:
            append_records(self.uri, self.all[self._written :])
        else:
            write_records(self.uri, self.all)
        now = time.monotonic()
        self._written, self._due = len(self.all), now + max(EVERY_S, SHARE * (now - started))
