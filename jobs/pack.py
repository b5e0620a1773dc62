#!/usr/bin/env python3
"""Make a batch plan: tokenise once and fix which rows form each global batch.

Reads passages (--stage pack_pretrain) or groups (--stage pack_finetune, pack_refine). Writes plan.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("pack"))
