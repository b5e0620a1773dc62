#!/usr/bin/env python3
"""Serve the release on /v1/embeddings until it is interrupted; `--check` verifies the endpoint and ends.

Reads the release artifact (or any model directory: --model). Writes nothing.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from chuxin.commands import serve_job  # noqa: E402  (the package is found by the line above)

if __name__ == "__main__":
    sys.exit(serve_job())
