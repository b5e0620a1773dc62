#!/usr/bin/env python3
"""Make the starting checkpoint: a tokenizer and drawn weights, or a copy of an existing model.

Reads curated passages (to train the tokenizer). Writes model/.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("init"))
