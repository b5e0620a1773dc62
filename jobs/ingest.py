#!/usr/bin/env python3
"""Read raw corpora and labelled pairs into tables of documents and groups.

Reads the files that the config's sources name. Writes documents, groups and rejects (malformed lines).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("ingest"))
