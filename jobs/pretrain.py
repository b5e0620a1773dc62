#!/usr/bin/env python3
"""Pretrain with RetroMAE on the packed texts, by Ray Train and DeepSpeed; resumes at its checkpoints.

Reads a plan and a model. Writes model/ and metrics.jsonl.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("pretrain"))
