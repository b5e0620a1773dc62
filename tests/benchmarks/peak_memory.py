"""Runs a command and tells what it and all it started took: peak memory, CPU seconds, wall seconds.

    python tests/benchmarks/peak_memory.py NAME COMMAND [ARGUMENT …]

Memory is the sum over the processes of the command's session of their proportional set sizes (shared pages counted
once, split among those that map them), looked at every second; Ray's shared-memory store is among them. Writes
results/NAME.json. Exit code: the command's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import run  # noqa: E402  (beside this file)

EVERY_S = 1.0


def session_bytes(session: int) -> int:
    """Sums the proportional set sizes of a session's processes."""
    total = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(pid)) == session:
                total += pss_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8"))
        except (ProcessLookupError, FileNotFoundError):
            continue  # it has just ended
    return total


def pss_bytes(rollup: str) -> int:
    """Reads the proportional set size out of /proc/PID/smaps_rollup; a process that ends reads as empty."""
    return next((1024 * int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")), 0)


def main(arguments: list[str]) -> int:
    """Runs the command, prints and writes the figures."""
    name, command = arguments[0], arguments[1:]
    started, cpu = time.monotonic(), run.cpu_seconds()
    process = subprocess.Popen(command, start_new_session=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, session_bytes(process.pid))
        time.sleep(EVERY_S)
    figures = {
        "name": name, "command": command, "exit_code": process.returncode, "peak_memory_gb": round(peak / 1e9, 2),
        "seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(run.cpu_seconds() - cpu, 1),
        "date": time.strftime("%Y-%m-%d"), "machine": run.machine(),
    }
    target = run.HERE / "results" / f"{name}.json"
    target.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(figures, ensure_ascii=False))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
