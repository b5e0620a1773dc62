#!/usr/bin/env python3
"""Turn documents into clean passages and pairs into clean groups; nothing is deleted, every row has a status.

Reads the ingest artifact and the benchmarks. Writes passages and groups.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("curate"))
