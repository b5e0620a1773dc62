#!/usr/bin/env python3
"""Score models, rerankers and BM25 on the benchmarks, with intervals by paired bootstrap.

Reads models and benchmark folders. Writes scores and results.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("evaluate"))
