#!/usr/bin/env python3
"""The whole story, in order, from one config: raw text and labelled pairs to a served, scored model.

Skips what is committed; ends with a table and report.html. `--dry-run` shows what would run, `--to` stops early.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import recipe_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(recipe_job())
