#!/usr/bin/env python3
"""Write the sample world: raw files in the layouts of the real sources, two benchmarks, planted defects.

Reads nothing. Writes raw/, benchmarks/ and planted.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import stage_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(stage_job("sample"))
