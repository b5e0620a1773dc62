#!/usr/bin/env python3
"""List all that derives from a passage; with --apply remove it and mark what is left for rebuild."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import forget_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(forget_job())
