#!/usr/bin/env python3
"""Search all passages for every query; `--stage select` chooses positives and negatives of what was found.

Reads groups, passages, a model. Writes tables candidates, groups.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("mine"))
