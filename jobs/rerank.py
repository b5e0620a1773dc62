#!/usr/bin/env python3
"""Score mined candidates with a cross-encoder.

Reads candidates, a reranker. Writes the table candidates with scores.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("rerank"))
