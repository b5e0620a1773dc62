"""Chaos: kill -9 the whole recipe at five moments, rerun, and compare with an undisturbed run.

    python tests/e2e/chaos.py [--config jobs/configs/micro/recipe.yaml] [--keep]

Moments: a partition of ingest is committed; a partition of curate; training has a checkpoint; one of evaluation's
scores is committed; a stage's manifest is on disk under its temporary name, not yet renamed. After each kill the
recipe runs again in the same workspace. Shown at the end: every table of every stage has the same rows and ids, and
no stage that was committed before a kill ran again. Exit code 1 with the difference otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import xxhash

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600  # of one run of the micro recipe; twenty times what it takes


def start(config: str, workspace: Path, wrapper: str | None = None) -> subprocess.Popen[bytes]:
    """Starts the recipe in a process group of its own; `wrapper` is Python run before it in the same process."""
    arguments = ["jobs/recipe.py", "--config", config, "--workspace", str(workspace)]
    if wrapper is None:
        command = [sys.executable, *arguments]
    else:
        run = "runpy.run_path('jobs/recipe.py', run_name='__main__')"
        code = f"import sys, runpy; sys.argv = {arguments!r}\n{wrapper}\n{run}"
        command = [sys.executable, "-c", code]
    log = open(workspace / "log.txt", "ab")
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def finish(config: str, workspace: Path) -> None:
    """Runs the recipe to its end."""
    code = start(config, workspace).wait(timeout=LIMIT_S)
    if code != 0:
        sys.exit(f"the recipe ended with {code}:\n{(workspace / 'log.txt').read_text()[-3000:]}")


def appears(pattern: str) -> Callable[[Path], bool]:
    """A moment: a file of this pattern exists in the workspace."""
    return lambda workspace: next(workspace.glob(pattern), None) is not None


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "ingest": appears("ingest-*/partitions/*.json"),
    "curate": appears("curate-*/partitions/*.json"),
    "training": appears("finetune-*/state/checkpoints/*/complete.json"),
    "evaluation": appears("evaluate-*/partitions/*.json"),
}
# Stops the driver between writing the manifest's temporary file and renaming it.
AT_MANIFEST = """
import os, signal
rename = os.replace
def killed(source, target):
    if "/release-" in str(target) and str(target).endswith("/manifest.json"):
        os.killpg(os.getpgid(0), signal.SIGKILL)
    rename(source, target)
os.replace = killed
"""


def kill_at(config: str, workspace: Path, name: str) -> list[str]:
    """Runs until the moment, kills the process group, and returns the stages committed by then."""
    process = start(config, workspace, AT_MANIFEST if name == "manifest" else None)
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None and (name == "manifest" or not MOMENTS[name](workspace)):
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            sys.exit(f"the moment `{name}` did not come within {LIMIT_S} s")
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        sys.exit(f"{name}: the recipe ended by itself ({process.returncode}) before it could be killed:\n"
                 f"{(workspace / 'log.txt').read_text()[-3000:]}")
    return sorted(path.parent.name for path in workspace.glob("*/manifest.json"))


def contents(workspace: Path) -> dict[str, tuple[int, str]]:
    """Rows and order-free content hash of every committed table, by stage and table, whatever the partitions."""
    found: dict[str, tuple[int, str]] = {}
    for path in sorted(workspace.glob("*/manifest.json")):
        manifest = json.loads(path.read_text())
        for partition in manifest["partitions"]:
            for table, note in partition["tables"].items():
                rows = pq.read_table(path.parent / "parts" / partition["directory"] / note["file"]).to_pylist()
                total = sum(xxhash.xxh3_64_intdigest(repr(row).encode()) for row in rows)
                key = f"{path.parent.name}/{partition['key']}/{table}"
                found[key] = (len(rows), f"{total % 2**64:016x}")
    return found


def main() -> int:
    """Runs the undisturbed recipe, then the killed one, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="jobs/configs/micro/recipe.yaml")
    parser.add_argument("--workspace", type=Path, default=None, help="keep both runs here")
    known = parser.parse_args()
    base = known.workspace or Path(tempfile.mkdtemp(prefix="chuxin-chaos-"))
    calm, stormy = base / "undisturbed", base / "killed"
    for directory in (calm, stormy):
        directory.mkdir(parents=True)
    began = time.time()
    finish(known.config, calm)
    print(f"undisturbed run: {time.time() - began:.0f} s", flush=True)
    stamps: dict[str, int] = {}
    for name in (*MOMENTS, "manifest"):
        committed = kill_at(known.config, stormy, name)
        for stage in committed:
            now = (stormy / stage / "manifest.json").stat().st_mtime_ns
            if stamps.setdefault(stage, now) != now:
                sys.exit(f"{stage} was committed before a kill and ran again")
        print(f"killed at {name}: {len(committed)} stages were committed", flush=True)
    finish(known.config, stormy)
    again = [s for s, stamp in stamps.items() if (stormy / s / "manifest.json").stat().st_mtime_ns != stamp]
    left, right = contents(calm), contents(stormy)
    different = sorted(key for key in left.keys() | right.keys() if left.get(key) != right.get(key))
    for key in different:
        print(f"DIFFERENT {key}: undisturbed {left.get(key)}, killed {right.get(key)}")
    if again or different:
        print(f"stages that ran again: {again}")
        return 1
    rows = sum(count for count, _ in left.values())
    print(f"same: {len(left)} tables, {rows:,} rows, every id; no committed stage ran again; "
          f"{time.time() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
