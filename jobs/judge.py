#!/usr/bin/env python3
"""Judge written queries by rules and an LLM; `--stage relabel` asks it about mined candidates.

Reads synthetic, or candidates. Writes tables judged and groups, or candidates.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("judge"))
