#!/usr/bin/env python3
"""Tell a training group's story: raw document, prompt, verdict, scores, and the steps that used it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import why_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(why_job())
