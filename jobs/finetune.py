#!/usr/bin/env python3
"""Finetune contrastively on the packed groups, by Ray Train and DeepSpeed; resumes at its checkpoints.

Trains the dense vector, all three heads (--stage refine) or a cross-encoder (--stage reranker). Reads a plan and a
model. Writes model/ and metrics.jsonl.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("finetune"))
