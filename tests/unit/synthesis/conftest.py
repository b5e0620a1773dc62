"""Shared by the tests of this package: the scripted LLM beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
