#!/usr/bin/env python3
"""Write queries for passages with an LLM; `--stage gate` first settles which passages are worth one.

Reads passages (and the gate). Writes tables synthetic, gate.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("synthesize"))
