"""The memory of a command is that of everything it started."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# A child that the shell starts and waits for holds 300 MB for two seconds.
COMMAND = f"{sys.executable} -c 'import time; x = bytearray(300_000_000); time.sleep(2)'; exit 3"


def test_children_count_and_the_exit_code_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = runpy.run_path(str(BENCHMARKS / "peak_memory.py"))
    monkeypatch.setattr(tool["run"], "HERE", tmp_path)
    (tmp_path / "results").mkdir()
    assert tool["main"](["hold", "sh", "-c", COMMAND]) == 3
    figures = json.loads((tmp_path / "results" / "hold.json").read_text())
    assert 0.3 <= figures["peak_memory_gb"] < 0.5 and figures["exit_code"] == 3 and figures["seconds"] > 2
