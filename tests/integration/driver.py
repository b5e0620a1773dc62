"""Kills a recipe in the middle, with everything that Ray started for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


def kill_when(config: Path, reached: Callable[[], bool]) -> None:
    """Runs `jobs/recipe.py` until so much is done, then ends its driver and all its processes by SIGKILL.

    Args:
        config: The recipe; what it prints goes to a file beside it.
        reached: Looks at what it has written.
    """
    environment = {**os.environ, "RAY_raylet_death_check_interval_milliseconds": "1000"}
    with open(config.with_suffix(".log"), "ab") as log:
        driver = subprocess.Popen([sys.executable, "jobs/recipe.py", "--config", str(config)], cwd=ROOT,
                                  env=environment, stdout=log, stderr=log)  # fmt: skip
    try:
        while driver.poll() is None and not reached():
            time.sleep(0.05)
        assert driver.poll() is None, config.with_suffix(".log").read_text()[-3000:]
    finally:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(driver.pid)
            family = [root, *root.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # a worker ends by itself when it sees its raylet gone
                process.kill()
        driver.wait()
    assert not psutil.wait_procs(family, timeout=120)[1]
